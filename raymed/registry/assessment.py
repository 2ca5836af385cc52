"""How good a trial is, per patient: its temperature fitted on validation, its figures on patients that it has not seen.

The test split is looked at here and nowhere before.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from raymed.data.leak import guard
from raymed.data.plan import SliceSettings, uniform
from raymed.data.prepared import Prepared
from raymed.data.split import SPLITS
from raymed.data.usage import Usage
from raymed.errors import UserError
from raymed.evaluation.calibration import fit_temperature
from raymed.evaluation.known_patients import KnownPatients
from raymed.evaluation.metrics import Evaluation, evaluate
from raymed.evaluation.patients import Patients, softmax, to_patients
from raymed.evaluation.predict import Model, chosen_rows, predict_rows
from raymed.evaluation.tables import decision_table
from raymed.recipes.exported import RECIPE_FILE
from raymed.spreadsheet import to_csv
from raymed.storage.folder import Folder
from raymed.storage.seal import check_seal
from raymed.training.checkpoint import checkpoint_names, copy_to_local, step_of
from raymed.training.predictions import read_predictions

if TYPE_CHECKING:
    from raymed.evaluation.report import HardPatient
    from raymed.tracking.tracker import Tracker


CHECKPOINT, FOLDER, DATA_DIGEST = "raymed.checkpoint", "raymed.folder", "raymed.data_digest"  # tags of a run


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
    """

    run_id: str
    checkpoint: str
    data: str
    fold: int | None
    slices: SliceSettings
    seed: int
    data_digest: str = ""

    def tags(self) -> dict[str, str]:
        """The run's tags from which `of_run` reads it again."""
        return {
            **({CHECKPOINT: self.checkpoint} if self.checkpoint else {}),
            "raymed.data": self.data,
            "raymed.fold": "" if self.fold is None else str(self.fold),
            "raymed.slices": json.dumps(asdict(self.slices)),
            "raymed.seed": str(self.seed),
            DATA_DIGEST: self.data_digest,
        }

    @classmethod
    def of_run(cls, tracker: Tracker, run_id: str, step: int = 0) -> Candidate:
        """The candidate that a run left: its best checkpoint.

        Args:
            step: or the one at this optimizer step (0 = the best).

        Raises:
            UserError: there is no such run, or it left no such checkpoint.
        """
        run = tracker.describe(run_id)
        left = Folder.at(run.tags[FOLDER]) if FOLDER in run.tags else None  # a search, or of an earlier raymed
        if step and left is None:
            raise UserError(f"the run {run_id} ({run.name}) does not say where its checkpoints lie: leave --step out")
        checkpoint = _at_step(left, step) if step and left is not None else run.tags.get(CHECKPOINT, "")
        known = run.tags | ({CHECKPOINT: checkpoint} if checkpoint else {})
        missing = [name for name in cls("", "checkpoint", "", None, SliceSettings(), 0).tags() if name not in known]
        if missing == [CHECKPOINT] and left is not None:
            raise UserError(
                f"the run {run_id} ({run.name}, {run.status}) ended before its first validation, so none of its checkpoints "
                f"is the best. Name one by its --step; in {left.uri} lie {', '.join(checkpoint_names(left)) or 'none yet'}"
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
            data=run.tags["raymed.data"],
            fold=int(run.tags["raymed.fold"]) if run.tags["raymed.fold"] else None,
            slices=SliceSettings.read(json.loads(run.tags["raymed.slices"])),
            seed=int(run.tags["raymed.seed"]),
            data_digest=run.tags[DATA_DIGEST],
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

    def trained_rows(self, prepared: Prepared, refit: Refit | None) -> np.ndarray:
        """Rows of the slices that its network, or its refit, was trained on."""
        splits, slices = (("train",), self.slices) if refit is None else (refit.splits, self.slices.unlimited)
        return np.concatenate([chosen_rows(prepared, split, self.fold, slices, self.seed) for split in splits])

    def known_patients(self, prepared: Prepared, refit: Refit | None) -> KnownPatients:
        """Who trained its network, or its refit, and who chose it."""
        trained, chosen = self.trained_rows(prepared, refit), prepared.rows("val", self.fold)
        ids = (prepared.columns(rows, ["patient"])["patient"] for rows in (trained, chosen))
        return KnownPatients.of(prepared.digest, *ids)

    def network(self, checkpoint: str) -> Folder:
        """Where a checkpoint's exported network lies.

        Raises:
            UserError: it is not there any more.
        """
        folder = Folder.at(checkpoint)
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
        check_seal(into)
        return into


def validated_patients(checkpoint: str, prepared: Prepared, temperature: float = 1.0) -> Patients:
    """What a run said of its validation patients in its best epoch, as its checkpoint keeps it.

    Raises:
        RunError: that is not there, or damaged.
    """
    predictions = read_predictions(Folder.at(checkpoint))
    columns = prepared.columns(predictions["row"], ["patient", "label", "source"])
    probabilities = softmax(predictions["logits"], temperature)
    return to_patients(probabilities, columns["patient"], columns["label"], columns["source"])


@dataclass(frozen=True)
class Refit:
    """The same configuration, trained again on more rows after it was judged.

    Attributes:
        checkpoint: URI of its last checkpoint.
        splits: what it was trained on, e.g. ("train", "val").
    """

    checkpoint: str
    splits: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Assessment:
    """How good a candidate is, per patient, with calibrated probabilities.

    Attributes:
        candidate: who was judged.
        temperature: fitted on the validation patients.
        class_names: in the order of the probabilities.
        validation: figures of the validation split, which also chose the model: they flatter it.
        validation_patients: each validation patient's probabilities.
        test: figures of the test split, looked at once; None where there is none.
        test_patients: each test patient's probabilities.
        usage: patients and slices of each split that it was trained and judged on.
    """

    candidate: Candidate
    temperature: float
    class_names: tuple[str, ...]
    validation: Evaluation
    validation_patients: Patients
    test: Evaluation | None
    test_patients: Patients | None
    usage: Usage

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """Figures of each split, by what they are called in MLflow."""
        named = {"calibrated_val": self.validation, "test": self.test}
        return {name: each for name, each in named.items() if each is not None}

    def flat(self) -> dict[str, float]:
        """All figures under one name each."""
        return {f"{split}_{name}": value for split, each in self.evaluations.items() for name, value in each.flat().items()}

    def predictions(self) -> bytes:
        """A CSV of every judged patient. It names patients: keep it in the storage, never in MLflow."""
        tables = [
            decision_table(
                {"split": split, "patient_id": patients.ids}, patients.labels, patients.probabilities, self.class_names
            ).assign(slices=patients.slices, source=patients.sources)
            for split, patients in (("val", self.validation_patients), ("test", self.test_patients))
            if patients is not None
        ]
        return to_csv(pd.concat(tables))

    def hardest(self, prepared: Prepared, count: int = 6, slices: int = 16) -> list[HardPatient]:
        """The judged patients whose own class got the least probability (test patients where there are any)."""
        from raymed.evaluation.report import HardPatient  # a trial's driver does without matplotlib

        patients = self.test_patients or self.validation_patients
        own = patients.probabilities[np.arange(len(patients.labels)), patients.labels]
        split = "test" if self.test_patients else "val"
        rows = chosen_rows(prepared, split, self.candidate.fold, self.candidate.slices, self.candidate.seed)
        owner = prepared.columns(rows, ["patient"])["patient"]
        hardest = []
        for place in np.argsort(own, kind="stable")[:count]:
            seen = rows[owner == patients.ids[place]]
            shown = prepared.read(seen[uniform(len(seen), slices)])
            label, probabilities = int(patients.labels[place]), patients.probabilities[place].tolist()
            pictures = [record.images[0].pixels for record in shown]
            hardest.append(HardPatient(patients.ids[place], label, probabilities, pictures))
        return hardest


def _at_step(run: Folder, step: int) -> str:
    """A run's checkpoint at an optimizer step.

    Raises:
        UserError: there is none; says at which steps there are.
    """
    names = checkpoint_names(run)
    same = [name for name in names if step_of(name) == step]
    if not same:
        raise UserError(f"there is no checkpoint of step {step} in {run.uri}, which holds {', '.join(names) or 'none'}")
    return run.child(same[-1]).uri


def judge(
    candidate: Candidate, model: Model, prepared: Prepared, micro_batch: int = 32, workers: int = 1, bootstrap: int = 1000
) -> Assessment:
    """Fit the temperature on the validation patients, then judge validation and test patients with it.

    Raises:
        UserError: a leak between the splits, no validation patients, or no classes.
    """
    guard(prepared.index, candidate.fold)
    names = tuple(prepared.labels.names)
    if not names:
        raise UserError(
            f"{prepared.folder.uri} has no classes to judge by: its models are used through their ViT (extract_vit)"
        )

    used = {
        split: chosen_rows(prepared, split, candidate.fold, candidate.slices, candidate.seed)
        for split in SPLITS
        if len(prepared.rows(split, candidate.fold))
    }

    def predict(split: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return predict_rows(model, prepared, used.get(split, np.empty(0, np.int64)), micro_batch, workers)

    def judged(logits: np.ndarray, columns: dict[str, np.ndarray]) -> tuple[Evaluation, Patients]:
        probabilities = softmax(logits, temperature)
        patients = to_patients(probabilities, columns["patient"], columns["label"], columns["source"])
        return evaluate(patients, names, bootstrap, candidate.seed), patients

    logits, columns = predict("val")
    temperature = fit_temperature(logits, columns["patient"], columns["label"])
    validation, validation_patients = judged(logits, columns)
    test, test_patients = judged(*predict("test")) if "test" in used else (None, None)
    usage = Usage.of(prepared, used, candidate.fold)
    return Assessment(candidate, temperature, names, validation, validation_patients, test, test_patients, usage)
