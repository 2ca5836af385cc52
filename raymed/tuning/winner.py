"""The winner of a search that is judged by validation alone: registered, with a card that says how it was found.

What a pretrained backbone is worth shows only where it is used. So there are no patients to judge here, and no test figures.
"""

from __future__ import annotations

from raymed.job.job import Outcome
from raymed.recipes.metric import VAL_LOSS
from raymed.registry.register import register_network
from raymed.storage.folder import Folder
from raymed.training.checkpoint import read_history
from raymed.tuning.result import STATES, best_trial
from raymed.tuning.search import Search
from raymed.tuning.study import BEST_POINT, CHECKPOINT, DONE, Study


def register_winner(search: Search, study: Study, alias: str | None = None) -> Outcome:
    """Register the best trial by the search's objective.

    Args:
        alias: see `SearchOptions`.

    Raises:
        RunError: no trial completed an epoch.
    """
    best, tracker = best_trial(search, study), search.open_tracker()
    run = tracker.find(search.trial_key(best)) or ""
    value = study.objective.show(study.best_value(best))
    val_loss = read_history(Folder.at(best.user_attrs[CHECKPOINT]))[-1][VAL_LOSS.name]
    found_by = (
        f"The search {search.name}, {search.label(best)}: {value} in "
        f"{study.best_point(best)}, the best of {len(study.trials)} trials. It was started with `{search.command}`."
    )
    seen = study.champion if alias is None else None
    registered = register_network(tracker, search.candidate(run, best), val_loss, found_by, alias, seen=seen)
    uri, parent = registered.uri, str(tracker.find(search.name))
    report = f"{registered.card}\n{_table(search, study)}\n"
    tracker.text(parent, report, "report.md")
    tracker.metrics(parent, {study.objective.name: study.best_value(best)})
    tracker.describe_as(
        parent,
        f"**{search.label(best)} won**. {found_by}\n\nIt is registered as `{uri}`, version {registered.version}.\n\n"
        f"Report: `report.md` under Artifacts, and `{search.template.folder.uri}/report.md`.\n\n"
        "Another trial instead: `python jobs/promote.py RUN_ID`.",
    )
    search.template.folder.write("report.md", report.encode())
    search.prune_checkpoints(study, best)
    study.note_champion(registered.version)
    study.enter(DONE)
    lines = [
        f"{len(study.trials)} trials; best: {search.label(best)}, {value} in {study.best_point(best)}",
        f"registered: {registered.uri} (version {registered.version})",
        f"take its ViT out: python jobs/extract_vit.py --model {uri} --tracking-uri {search.tracking_uri} --out VIT",
        tracker.look_at_it,
        f"report: {search.template.folder.uri}/report.md",
    ]
    data = {
        "name": search.name,
        "best_trial": best.number,
        study.objective.name: study.best_value(best),
        "model": registered.uri,
        "version": registered.version,
        "tracking_uri": search.tracking_uri,
        "report": f"{search.template.folder.uri}/report.md",
    }
    return Outcome("\n".join(lines), data)


def _table(search: Search, study: Study) -> str:
    """All trials, the best first, as Markdown."""
    searched = list(search.settings.space)
    heads = ["trial", "state", study.objective.name, f"best {study.noun}", *searched]
    rows = [
        [
            str(trial.number),
            STATES[trial.state],
            study.objective.format.format(study.best_value(trial)),
            str(trial.user_attrs.get(BEST_POINT, "")),
        ]
        + [str(trial.params.get(name, "")) for name in searched]
        for trial in sorted(study.trials, key=study.rank)
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows])
