"""Search for the best report writer overnight: the guide's four settings first, then around what they show.

    python jobs/overnight.py                                           # phantom patients, tiny networks, two CPU cores
    python jobs/overnight.py --data PREPARED --epochs 300              # stage 1
    python jobs/overnight.py --data PREPARED --stage 2 --llm.path mamba-130m-hf --hours 8
    python jobs/overnight.py --data PREPARED --no_grid                 # one run: learning rate 1e-4, batch 4
    ray job submit --working-dir . -- python jobs/overnight.py         # the same on a running cluster

Files go to --output_dir: a log of each trial, the best weights, overnight_best_summary.txt and a leaderboard. The same
command goes on with an interrupted search.
"""

from __future__ import annotations

from dataclasses import asdict

from raymed.errors import RunError
from raymed.job.job import Outcome, run
from raymed.systems.mamba_vlm.overnight_options import GUIDE, OvernightOptions


def main(options: OvernightOptions) -> Outcome:
    from raymed.cluster.connection import connect
    from raymed.systems.mamba_vlm.overnight import SUMMARY, summary, write_overnight
    from raymed.tuning.estimate import describe
    from raymed.tuning.execution import run_search
    from raymed.tuning.result import conclude_search

    options = options.completed()
    connect(start=not options.dry_run)
    search = options.open_search(options.prepared(), options.budget)
    if options.dry_run:
        return describe(search)
    with search.alone():
        study = run_search(search)
        entries = write_overnight(search, study, options.output)
        if not entries or entries[0].rank is None:
            raise RunError("\n".join(["no run ended well:", *summary(entries)]))
        concluded = conclude_search(search, study)
    lines = [
        *concluded.text.splitlines(),
        *summary(entries),
        f"best: {options.output / entries[0].checkpoint}, copied to vision_bridge_overnight_best.pt",
        search.open_tracker().look_at_it,
        f"summary: {options.output / SUMMARY}",
    ]
    data = concluded.data | {
        "name": search.name,
        "entries": [asdict(entry) for entry in entries],
        "output_dir": str(options.output),
    }
    return Outcome("\n".join(lines), data)


if __name__ == "__main__":
    run(OvernightOptions, main, aliases=GUIDE)
