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


def main(options: TrainClip) -> Outcome:
    from raymed.cluster.connection import connect
    from raymed.systems.clip.checkpoint import read_for, start_from
    from raymed.systems.clip.conclusion import endings
    from raymed.systems.clip.output import OutputWriter
    from raymed.systems.clip.runs import RUN, Work, list_configurations
    from raymed.systems.clip.summary import summarise, summarise_finished
    from raymed.tuning.estimate import describe
    from raymed.tuning.execution import run_search
    from raymed.tuning.study import CHECKPOINT

    configurations, wrong = list_configurations(options, GUIDE)
    for each in {each.prepared.folder.uri: each for each in configurations}.values():
        each.options.log_data_summary(each.prepared)
    connect(start=not options.dry_run)
    if options.resume_from:
        begin_with = Path(options.resume_from).expanduser().resolve()
        if options.resume == "never" and begin_with.is_relative_to(options.folder.path):
            raise UserError(f"--resume never may remove {begin_with}: copy it out of {options.folder.uri} first")
        read_for(begin_with, configurations[0].specs[RUN], options.force)
    work = Work.of(options, configurations)
    if not work.configurations:
        return summarise_finished(work, wrong)
    if options.dry_run:
        plan = describe(work.search)
        if wrong:
            raise UserError("\n".join([*wrong, "the plan of the others:", plan.text]))
        return plan
    outputs = work.outputs()
    if options.resume_from:
        start_from(begin_with, outputs[RUN].spec, options.force)
    if options.multi_config and options.resume != "never" and not work.search.has_begun:
        for output in outputs.values():  # what a job with other entries beside them left unfinished
            output.take_up()
    with work.search.alone(), OutputWriter(outputs, endings(work, outputs, wrong)) as writer:
        trials = work.search.last_trials(run_search(work.search, writer.watch))
        writer.finish({name: trial.user_attrs.get(CHECKPOINT) for name, trial in trials.items()})
    return summarise(work, outputs, trials, wrong)


if __name__ == "__main__":
    run(TrainClip, main, aliases=GUIDE)
