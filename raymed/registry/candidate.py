"""A trained model and what it takes to assess it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.data.split import SPLITS
from raymed.data.usage import Usage
from raymed.errors import UserError
from raymed.evaluation.known_patients import KnownPatients
from raymed.evaluation.predict import chosen_rows
from raymed.recipes.exported import RECIPE_FILE
from raymed.storage.folder import Folder
from raymed.storage.seal import SEAL, check_seal, digest_of_file, read_list
from raymed.training.checkpoint import FIRST_LIST, PROGRESS, copy_to_local, sealed_names, step_of

if TYPE_CHECKING:
    from raymed.tracking.tracker import Tracker

LEFT = (
    "was saved by a run that was ended while it left: training goes on from it, and it holds no network to use. Give the "
    "run's command again, and end it by one Ctrl-C once it trains: it leaves a checkpoint that holds one"
)
CHECKPOINT, FOLDER = "raymed.checkpoint", "raymed.folder"  # tags of a run
DATA, DATA_DIGEST, FOLD = "raymed.data", "raymed.data_digest", "raymed.fold"  # likewise
FOLDS = "raymed.folds"  # of the mean of a cross-validation
EVERY_SLICE = SliceSettings(choice="all")
TRAINED, ELSEWHERE = "raymed.trained", "elsewhere"  # a tag of runs that trained nothing, and its value


@dataclass(frozen=True)
class Candidate:
    """A trained model and what it takes to judge it.

    Attributes:
        run_id: its MLflow run.
        checkpoint: URI of its best checkpoint, which holds the exported network in `model/`.
        data: URI of the prepared data it was trained on.
        fold: the cross-validation fold it was validated on; None for the stored split.
        slices: which slices of a patient are judged.
        seed: of the run.
        data_digest: what the prepared data held; empty where that was not noted.
        folds: of how many networks it is the mean, each trained without one fold, whose patients judge that network alone; 0
            for a network of its own.
        trained_here: on the data's training patients; False of a network that came as it is: nobody knows on whom it was.
    """

    run_id: str
    checkpoint: str
    data: str
    fold: int | None
    slices: SliceSettings
    seed: int
    data_digest: str = ""
    folds: int = 0
    trained_here: bool = True

    def tags(self) -> dict[str, str]:
        """The run's tags from which `of_run` reads it again."""
        return {
            **({CHECKPOINT: self.checkpoint} if self.checkpoint else {}),
            DATA: self.data,
            FOLD: "" if self.fold is None else str(self.fold),
            **({FOLDS: str(self.folds)} if self.folds else {}),
            "raymed.slices": json.dumps(asdict(self.slices)),
            "raymed.seed": str(self.seed),
            DATA_DIGEST: self.data_digest,
            **({} if self.trained_here else {TRAINED: ELSEWHERE}),
        }

    @classmethod
    def of_run(cls, tracker: Tracker, run_id: str, step: int = 0, checkpoint: str = "") -> Candidate:
        """The candidate that a run left: its best checkpoint.

        Args:
            step: or the one at this optimizer step (0 = the best).
            checkpoint: or this one, as a version of a registered model notes it.

        Raises:
            UserError: there is no such run, or it left no such checkpoint.
        """
        run = tracker.describe(run_id)
        left = Folder.at(run.tags[FOLDER]) if FOLDER in run.tags else None  # a search, or of an earlier raymed
        if step and left is None:
            raise UserError(f"the run {run_id} ({run.name}) does not say where its checkpoints lie: leave --step out")
        if step and left is not None:
            checkpoint = _at_step(left, step)
        checkpoint = checkpoint or run.tags.get(CHECKPOINT, "")
        known = run.tags | ({CHECKPOINT: checkpoint} if checkpoint else {})
        missing = [name for name in cls("", "checkpoint", "", None, SliceSettings(), 0).tags() if name not in known]
        if missing == [CHECKPOINT] and left is not None:
            raise UserError(
                f"the run {run_id} ({run.name}, {run.status}) ended before its first validation, so none of its checkpoints "
                f"is the best. {_newest(run_id, left)}"
            )
        if missing == [DATA_DIGEST]:
            raise UserError(
                f"the run {run_id} ({run.name}) is of an earlier raymed, which did not note what its data held: whether "
                "they are the same now is not known. Train it again"
            )
        if missing:
            raise UserError(
                f"the run {run_id} ({run.name}, {run.status}) has no tag {', '.join(missing)}, so there is nothing to "
                "promote: it is a whole search, or ended before its first checkpoint. Choose one of the search's trials."
            )
        return cls(
            run_id=run.id,
            checkpoint=checkpoint,
            data=run.tags[DATA],
            fold=int(run.tags[FOLD]) if run.tags[FOLD] else None,
            slices=SliceSettings.read(json.loads(run.tags["raymed.slices"])),
            seed=int(run.tags["raymed.seed"]),
            data_digest=run.tags[DATA_DIGEST],
            folds=int(run.tags.get(FOLDS, 0)),
            trained_here=run.tags.get(TRAINED) != ELSEWHERE,
        )

    @property
    def is_limited(self) -> bool:
        """Whether a limit left patients out, as for a first try."""
        return self.slices != self.slices.unlimited

    def open_data(self) -> Prepared:
        """The prepared data that the model was trained on.

        Raises:
            CommonError: they were prepared again, and are others now.
        """
        return Prepared.open(self.data, self.data_digest)

    def require_validated(self, prepared: Prepared) -> None:
        """Raises: UserError: it was trained on everything, and nobody is left to say what it is worth."""
        if not self.folds and not len(prepared.rows("val", self.fold)):
            raise UserError(
                f"{prepared.folder.uri} has no val {prepared.manifest.unit}s: nobody chose this network, and nobody is left "
                "to judge it or fit its temperature, so it is not registered. It can be used as it is, and judged on other "
                f"data: {self.checkpoint}"
            )

    def used_rows(self, prepared: Prepared) -> dict[str, np.ndarray]:
        """Rows of each split that it was trained or is judged on, ascending; a mean of folds both trains and is judged on
        all that are in folds."""
        return self._rows(prepared, self.slices)

    def usage(self, prepared: Prepared) -> Usage:
        """Patients and slices of each split that it was trained or is judged on."""
        return Usage.of(prepared, self.used_rows(prepared), self._rows(prepared, EVERY_SLICE))

    def trained_rows(self, prepared: Prepared, refit: Refit | None) -> np.ndarray:
        """Rows of the slices that its network, or its refit, was trained on; none where nobody knows."""
        if not self.trained_here:
            return np.empty(0, np.int64)
        splits, slices = (("train",), self.slices) if refit is None else (refit.splits, self.slices.unlimited)
        rows = self._rows(prepared, slices)
        return np.concatenate([rows[split] for split in splits if split in rows])

    def known_patients(self, prepared: Prepared, refit: Refit | None) -> KnownPatients | None:
        """Who trained its network, or its refit, and who chose it; None where nobody knows."""
        if not self.trained_here:
            return None
        chosen = self._rows(prepared, EVERY_SLICE).get("val", np.empty(0, np.int64))
        ids = (prepared.columns(rows, ["patient"])["patient"] for rows in (self.trained_rows(prepared, refit), chosen))
        return KnownPatients.of(prepared.digest, *ids)

    def _rows(self, prepared: Prepared, slices: SliceSettings) -> dict[str, np.ndarray]:
        """The rows that `slices` choose of each split that has any, ascending; of train only where it was trained here."""
        parts: dict[str, list[np.ndarray]] = {}
        for split in SPLITS if self.trained_here else SPLITS[1:]:
            for fold in range(self.folds) if self.folds else [self.fold]:
                if len(prepared.rows(split, fold)):
                    parts.setdefault(split, []).append(chosen_rows(prepared, split, fold, slices, self.seed))
        return {split: np.unique(np.concatenate(rows)) for split, rows in parts.items()}

    def network(self, checkpoint: str) -> Folder:
        """Where a checkpoint's exported network lies.

        Raises:
            UserError: it is not there any more, or there never was one.
        """
        folder = Folder.at(checkpoint)
        if folder.exists(PROGRESS) and not folder.exists(f"model/{RECIPE_FILE}"):
            raise UserError(f"the checkpoint {checkpoint} {LEFT}")
        if not folder.exists(f"model/{RECIPE_FILE}"):
            raise UserError(
                f"the checkpoint {checkpoint} of run {self.run_id} is not there any more, or holds no exported model. "
                "Choose another trial."
            )
        return folder.child("model")

    def fetch(self, checkpoint: str, into: Path) -> Path:
        """A local copy of a checkpoint's exported network.

        Raises:
            UserError: it is not there any more, or damaged.
        """
        copy_to_local(self.network(checkpoint), into)
        _require_own_list(Folder.at(checkpoint), into)
        check_seal(into)
        return into


@dataclass(frozen=True)
class Refit:
    """The same configuration, trained again on more rows after it was judged.

    Attributes:
        checkpoint: URI of its last checkpoint.
        splits: what it was trained on, e.g. ("train", "val").
        folds: URIs of the last checkpoints of its cross-fitting: networks of the same configuration, each trained without
            one fold of the patients and then asked about it. Empty where the data have no folds.
    """

    checkpoint: str
    splits: tuple[str, ...]
    folds: tuple[str, ...] = ()


def _require_own_list(checkpoint: Folder, network: Path) -> None:
    """A network's own list vouches for its files. Where it is gone, the checkpoint's list says that there was one.

    Raises:
        UserError: the list that lies with a copy of the network is not the one that the checkpoint had.
    """
    if not checkpoint.exists(FIRST_LIST):  # a network that no run saved
        return
    name = f"model/{SEAL}"
    listed = read_list(checkpoint.read(FIRST_LIST), f"{checkpoint.uri}/{FIRST_LIST}")
    own = network / SEAL
    if name in listed and not (own.is_file() and digest_of_file(own) == listed[name]):
        raise UserError(
            f"{checkpoint.uri}/{name} is missing or damaged, so nothing vouches for the network beside it. Choose another "
            "trial, or another checkpoint of this one (jobs/promote.py RUN_ID --step STEP)"
        )


def _newest(run_id: str, run: Folder) -> str:
    """What to do about a run that has no best checkpoint."""
    names = sealed_names(run)
    if not names:
        return f"There is none in {run.uri} yet: give the run's command again"
    step, uri = step_of(names[-1]), run.child(names[-1]).uri
    return f"The newest is taken by: python jobs/promote.py {run_id} --step {step}; it is {uri}"


def _at_step(run: Folder, step: int) -> str:
    """A run's checkpoint at an optimizer step.

    Raises:
        UserError: there is none; says at which steps there are.
    """
    names = sealed_names(run)
    same = [name for name in names if step_of(name) == step]
    if not same:
        raise UserError(f"there is no checkpoint of step {step} in {run.uri}, which holds {', '.join(names) or 'none'}")
    return run.child(same[-1]).uri
