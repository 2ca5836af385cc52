"""Train a CLIP classifier: once, in folds, or in many configurations; files go to --output-dir, records to MLflow.

    python jobs/train_clip.py                                            # phantom patients, small towers, a CPU will do
    python jobs/train_clip.py --data-dir IMAGES --output-dir OUT --image-encoder resnet18 --text-encoder BERT
    python jobs/train_clip.py --data-dir IMAGES --output-dir OUT --use-cv --n-splits 5 --early-stopping-patience 30
    python jobs/train_clip.py --data-dir IMAGES --output-dir OUT --multi-config --config-file configs/train_clip_config.json
    python jobs/train_clip.py --data-dir IMAGES --output-dir OUT --resume-from OUT/checkpoint_latest.pth

IMAGES holds one folder of images for each class. The same command goes on with an interrupted run.
"""

from __future__ import annotations

from pathlib import Path

from raymed.errors import UserError
from raymed.job.job import Outcome, run
from raymed.systems.clip.options import GUIDE, TrainClip
from raymed.tuning.budget import Budget


def main(options: TrainClip) -> Outcome:
    from raymed.cluster.connection import connect
    from raymed.systems.clip.checkpoint import read_for, start_from
    from raymed.systems.clip.output import OutputWriter
    from raymed.systems.clip.runs import RUN, default_output, list_configurations
    from raymed.systems.clip.summary import summarise
    from raymed.tuning.estimate import describe
    from raymed.tuning.execution import run_search
    from raymed.tuning.study import CHECKPOINT

    configurations, wrong = list_configurations(options, GUIDE)
    for each in {each.prepared.folder.uri: each for each in configurations}.values():
        each.options.log_data_summary(each.prepared)
    connect(start=not options.dry_run)
    runs = {name: spec for each in configurations for name, spec in each.specs.items()}
    if options.resume_from:
        begin_with = Path(options.resume_from).expanduser().resolve()
        if options.resume == "never" and begin_with.is_relative_to(options.folder.path):
            raise UserError(f"--resume never may remove {begin_with}: copy it out of {options.folder.uri} first")
        read_for(begin_with, runs[RUN], options.force)
    search = options.named_search(next(iter(runs.values())), Budget(len(runs)), runs)
    if options.dry_run:
        plan = describe(search)
        if wrong:
            raise UserError("\n".join([*wrong, "the plan of the others:", plan.text]))
        return plan
    output = Path(options.output_dir).expanduser().resolve() if options.output_dir else default_output(search)
    outputs = {name: each for listed in configurations for name, each in listed.outputs(output, search).items()}
    if options.resume_from:
        start_from(begin_with, outputs[RUN].spec, options.force)
    for each in configurations:
        each.start(output)
    with search.alone(), OutputWriter(outputs) as writer:
        trials = search.last_trials(run_search(search, writer.watch))
        writer.finish({name: trial.user_attrs.get(CHECKPOINT) for name, trial in trials.items()})
    return summarise(configurations, outputs, trials, search, output, wrong)


if __name__ == "__main__":
    run(TrainClip, main, aliases=GUIDE)
