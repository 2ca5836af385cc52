"""A cross-validation's networks as one model, the mean of their probabilities, which can be promoted like a trial.

Nobody can judge the mean itself, for everybody trained most of its networks: what is said of it is what each network says of
the fold that it was trained without.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from raymed.models.ensemble import member_folder, write_config
from raymed.recipes.exported import read_settings, write_settings
from raymed.registry.candidate import Candidate
from raymed.storage.folder import Folder
from raymed.tracking.tracker import USED, Tracker
from raymed.training.checkpoint import seal
from raymed.training.predictions import in_order, read_predictions, write_predictions
from raymed.training.upload import upload


def fold_mean(tracker: Tracker, folds: Sequence[Candidate], recipe: str, key: str, name: str, into: Folder) -> Candidate:
    """The mean of the networks of a cross-validation's folds, with an MLflow run of its own beside theirs.

    Made again of the same networks, it is the one that is there.

    Args:
        folds: the best checkpoint of each fold, in their order.
        recipe: what their network is exported by.
        key: of its run; `name`, what MLflow shows.
        into: where its checkpoint is written.
    """
    checkpoint = into.child(hashlib.blake2b(repr([each.checkpoint for each in folds]).encode(), digest_size=4).hexdigest())
    if not checkpoint.exists("sealed-000.json"):
        into.make()
        with tempfile.TemporaryDirectory() as temporary:
            local = Path(temporary)
            for number, each in enumerate(folds):
                each.fetch(each.checkpoint, member_folder(local / "model", number))
            write_config(local / "model", len(folds))
            write_settings(local / "model", read_settings(member_folder(local / "model", 0), recipe))
            said = [read_predictions(Folder.at(each.checkpoint)) for each in folds]
            write_predictions(local, in_order([(each["row"].tolist(), each) for each in said]))
            seal(local, 0, 1)
            upload(local, into, checkpoint.uri.rsplit("/", 1)[-1])
    parent = tracker.describe(folds[0].run_id).parent
    run = tracker.run(key, name, parent)
    mean = replace(folds[0], run_id=run, checkpoint=checkpoint.uri, fold=None, folds=len(folds))
    tracker.tags(run, mean.tags() | {USED: str(mean.usage(mean.open_data()))})
    tracker.finish(run, "FINISHED")
    return mean
