"""How good a classifier is, per patient: temperature fitted on validation, figures on patients that it has not seen.

The test split is looked at here and nowhere before.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from raymed.data.acquisition import Acquisition
from raymed.data.leak import guard
from raymed.data.plan import uniform
from raymed.data.prepared import Prepared
from raymed.data.usage import Usage
from raymed.errors import RunError, UserError
from raymed.evaluation import summary
from raymed.evaluation.calibration import Temperature, fit_temperature
from raymed.evaluation.estimate import Estimate
from raymed.evaluation.metrics import Evaluation, difference_interval, evaluate
from raymed.evaluation.patients import Patients
from raymed.evaluation.predict import COLUMNS, Inference, Model, predict_rows
from raymed.evaluation.single_slices import SingleSlices, probabilities_of
from raymed.evaluation.tables import decision_table
from raymed.language import say
from raymed.recipes.metric import VAL_LOSS, Metric
from raymed.registry import model_card
from raymed.spreadsheet import to_csv
from raymed.storage.availability import second_look
from raymed.storage.folder import Folder
from raymed.training.predictions import read_predictions

if TYPE_CHECKING:
    from raymed.evaluation.report import HardPatient, SearchSummary
    from raymed.registry.assessment import AssessmentSettings, CardFacts
    from raymed.registry.candidate import Candidate, Refit
    from raymed.tracking.tracker import Tracker

log = logging.getLogger("raymed")

AS_IT_IS = Temperature()
ONE, MANY = "temperature_one_slice", "temperature_many_slices"  # in MLflow


@dataclass(frozen=True, eq=False)
class PatientAssessment:
    """How good a candidate is, per patient, with calibrated probabilities.

    Attributes:
        candidate: who was judged.
        prepared: the data it was trained and judged on.
        temperature: fitted on the validation patients, of whatever number of slices.
        class_names: in the order of the probabilities.
        validation: figures of the validation split, which also chose the model: they flatter it.
        validation_patients: each validation patient's probabilities.
        test: figures of the test split, looked at once; None where there is none.
        test_patients: each test patient's probabilities.
        usage: patients and slices of each split that it was trained and judged on.
        single: what it says of each slice of the judged patients by itself; None where none has several.
    """

    candidate: Candidate
    prepared: Prepared
    temperature: Temperature
    class_names: tuple[str, ...]
    validation: Evaluation
    validation_patients: Patients
    test: Evaluation | None
    test_patients: Patients | None
    usage: Usage
    single: SingleSlices | None = None

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """Figures of each split, by what they are called in MLflow."""
        named = {"calibrated_val": self.validation, "test": self.test}
        return {name: each for name, each in named.items() if each is not None}

    @property
    def judged(self) -> tuple[str, Evaluation]:
        """The figures that count and whose they are: test patients', or, where there are none, validation patients'."""
        return ("test", self.test) if self.test is not None else ("validation", self.validation)

    @property
    def slices(self) -> int:
        """How many slices most patients have."""
        return int(np.median(self.validation_patients.slices))

    @property
    def scaling(self) -> str:
        """The temperature in words."""
        return self.temperature.words(self.slices)

    @property
    def _temperatures(self) -> dict[str, float]:
        """For MLflow: as patients here have it, and what it is made of."""
        return {
            "temperature": float(self.temperature.of(self.slices)),
            ONE: self.temperature.one,
            MANY: self.temperature.many,
        }

    def registered_temperature(self, refit: Refit | None) -> Temperature:
        """What goes with the registered network: where that was trained again, also on the patients who were asked here, the
        temperature is fitted on what networks of its configuration say of the fold that they were trained without."""
        if refit is None or not refit.folds:
            return self.temperature
        parts = [read_predictions(Folder.at(checkpoint)) for checkpoint in refit.folds]
        columns = self.prepared.columns(np.concatenate([part["row"] for part in parts]), ["patient", "label"])
        return fit_temperature(np.concatenate([part["logits"] for part in parts]), columns["patient"], columns["label"])

    @property
    def test_ids(self) -> Sequence[str]:
        return [] if self.test_patients is None else [str(patient) for patient in self.test_patients.ids]

    def figures(self) -> dict[str, float]:
        figures = self._temperatures
        for split, evaluation in self.evaluations.items():
            figures |= {f"{split}_{name}": value for name, value in evaluation.flat().items()}
        if self.single is not None:
            figures |= {f"{list(self.evaluations)[-1]}_{name}": value for name, value in self.single.flat().items()}
        return figures

    def tags(self) -> dict[str, str]:
        tags = {f"val_{metric}": f"{each.value:.4f}" for metric, each in self.validation.metrics.items()}
        if self.test is not None:
            tags |= {f"test_{metric}": f"{each.value:.4f}" for metric, each in self.test.metrics.items()}
        return tags | {name: repr(value) for name, value in self._temperatures.items()}

    def headline(self) -> str:
        split, evaluation = self.judged
        named = [name for name in ("loss", "accuracy", "macro_auc") if name in evaluation.metrics]
        figures = ", ".join(f"{name} {summary.show(evaluation.metrics[name])}" for name in named)
        return f"{evaluation.patients} {split} {evaluation.units}: {figures}."

    def lines(self) -> list[str]:
        split, evaluation = self.judged
        names = self.prepared.labels.called
        return [
            say(
                "{count} {split} {units}, {scaling}:",
                count=evaluation.patients,
                split=say(split),
                units=say(evaluation.units),
                scaling=self.scaling,
            ),
            *(f"  {line}" for line in summary.lines(evaluation, names)),
        ]

    def files(self) -> dict[str, bytes]:
        """`patients.csv` (`images.csv` where nobody knows whose they are): every judged one."""
        unit = self.validation.unit
        tables = [
            decision_table(
                {"split": split, f"{unit}_id": patients.ids}, patients.labels, patients.probabilities, self.class_names
            ).assign(slices=patients.slices, source=patients.sources)
            for split, patients in (("val", self.validation_patients), ("test", self.test_patients))
            if patients is not None
        ]
        return {f"{unit}s.csv": to_csv(pd.concat(tables))}

    def log(self, tracker: Tracker) -> None:
        from raymed.evaluation import figures  # a trial's driver does without matplotlib

        run_id, names = self.candidate.run_id, self.class_names
        tracker.metrics(run_id, self._temperatures)
        for split, evaluation in self.evaluations.items():
            cells = figures.confusion(evaluation.confusion, names, names)
            tracker.figure(run_id, cells, f"figures/{split}_confusion.png")
            if evaluation.calibration is not None:
                tracker.figure(
                    run_id, figures.reliability(evaluation.calibration, evaluation.units), f"figures/{split}_reliability.png"
                )
            tracker.figure(run_id, figures.roc(evaluation, names), f"figures/{split}_roc.png")
        if self.single is not None:
            cells = figures.confusion(self.single.confusion, names, names)
            tracker.figure(run_id, cells, f"figures/{list(self.evaluations)[-1]}_slices_confusion.png")

    def card(self, facts: CardFacts) -> str:
        return model_card.write(facts, self._inference(facts), self)

    def artefact(self, facts: CardFacts, network: Path, folder: Path) -> Path:
        """A model that MLflow serves: it is asked about a patient's pictures and answers with probabilities."""
        from raymed.registry.served_model import save

        save(network, self._inference(facts), folder)
        return folder

    def differences(self, objective: Metric, others: Mapping[int, Folder]) -> dict[int, Estimate]:
        """As `loss_differences`; by another objective than the loss nothing is compared."""
        if objective != VAL_LOSS:
            return {}
        return loss_differences(self.prepared, Folder.at(self.candidate.checkpoint), others, self.candidate.seed)

    def above(self, other: Candidate, noted: Mapping[str, str]) -> Estimate | None:
        """By how much its loss is above that of another model over the same validation patients, both temperature-scaled.

        None where that model has no temperature, or was validated on other patients.
        """
        if "temperature" not in noted:
            return None
        temperature = Temperature.read(float(noted["temperature"]))  # of an earlier raymed, which had but one
        if ONE in noted:
            temperature = Temperature(float(noted[ONE]), float(noted[MANY]))
        patients = validated_patients(other.open_data(), Folder.at(other.checkpoint), temperature)
        return difference_interval(self.validation_patients, patients, seed=self.candidate.seed)

    def page(self, search: SearchSummary, facts: CardFacts) -> tuple[str, str]:
        from raymed.evaluation.report import SearchReport, render

        report = SearchReport(
            **vars(search),
            names=self.prepared.labels.titles,
            validation=self.validation,
            test=self.test,
            temperature=self.scaling,
            hardest=self.hardest(),
            hardest_split="test" if self.test_patients else "validation",
            notes=self.notes(facts.refit),
            single=self.single,
        )
        return "report.html", render(report)

    def notes(self, refit: Refit | None) -> list[str]:
        """What a reader of the page must not miss; each only where it holds."""
        split, evaluation = self.judged
        notes = [f"{warning[0].upper()}{warning[1:]}." for warning in model_card.unknown_patients(self.prepared)]
        if not evaluation.beats_majority:
            notes.append(
                say(
                    "These {split} {units} do not show that the model is right more often than always answering {majority}.",
                    split=say(split),
                    units=say(evaluation.units),
                    majority=self.prepared.labels.told({evaluation.baselines.majority: ""}).popitem()[0],
                )
            )
        if refit is not None:
            notes.append(
                say(
                    "The registered model was trained again on {splits}; figures belong to the model before that.",
                    splits=" + ".join(map(say, refit.splits)),
                )
            )
            if not refit.folds:
                notes.append(say("So does the temperature."))
        return [*notes, say("Probabilities are temperature-scaled: figures are those after that.")]

    def next_step(self, uri: str, tracking_uri: str) -> str:
        return ""

    def hardest(self, count: int = 6, slices: int = 16) -> list[HardPatient]:
        """The judged patients whose own class got the least probability (test patients where there are any)."""
        from raymed.evaluation.report import HardPatient  # a trial's driver does without matplotlib

        prepared, patients = self.prepared, self.test_patients or self.validation_patients
        own = patients.probabilities[np.arange(len(patients.labels)), patients.labels]
        split = "test" if self.test_patients else "val"
        rows = self.candidate.used_rows(prepared)[split]
        owner = prepared.columns(rows, ["patient"])["patient"]
        hardest = []
        for place in np.argsort(own, kind="stable")[:count]:
            seen = rows[owner == patients.ids[place]]
            shown = prepared.read(seen[uniform(len(seen), slices)])
            label, probabilities = int(patients.labels[place]), patients.probabilities[place].tolist()
            pictures = [record.images[0].pixels for record in shown]
            hardest.append(HardPatient(patients.ids[place], label, probabilities, pictures))
        return hardest

    def _inference(self, facts: CardFacts) -> Inference:
        candidate, prepared = self.candidate, self.prepared
        return Inference(
            name=facts.name,
            labels=prepared.labels,
            image=prepared.image,
            slices=candidate.slices,
            temperature=self.registered_temperature(facts.refit),
            data=prepared.digest,
            known=candidate.known_patients(prepared, facts.refit),
            acquisition=Acquisition.of(prepared, candidate.trained_rows(prepared, facts.refit)),
        )


def loss_differences(prepared: Prepared, winner: Folder, others: Mapping[int, Folder], seed: int) -> dict[int, Estimate]:
    """By trial, how much larger its loss is than the winner's over the same validation patients, each at its best epoch.

    A trial whose 95 % interval holds zero is not surely worse.

    Args:
        winner: its best checkpoint.
        others: those of the other trials.

    Raises:
        RunError: the winner's predictions are damaged; another's, or those of other patients, are said to be and left out.
    """
    best, differences = validated_patients(prepared, winner), {}
    for number, checkpoint in others.items():
        try:
            patients = second_look(partial(validated_patients, prepared, checkpoint), winner)
            differences[number] = difference_interval(patients, best, seed=seed)
        except (RunError, UserError) as error:  # or a limit on patients, too, was searched
            log.warning("trial %d is not compared with the best: %s", number, error)
    return differences


def validated_patients(prepared: Prepared, checkpoint: Folder, temperature: Temperature = AS_IT_IS) -> Patients:
    """What a run said of its validation patients in its best epoch, as its checkpoint keeps it.

    Raises:
        RunError: that is not there, or damaged.
    """
    predictions = read_predictions(checkpoint)
    columns = prepared.columns(predictions["row"], ["patient", "label", "source"])
    return temperature.pool(predictions["logits"], columns)


def assess_patients(candidate: Candidate, model: Model, prepared: Prepared, how: AssessmentSettings) -> PatientAssessment:
    """Fit the temperature on the validation patients, then judge validation and test patients with it.

    The mean of a cross-validation is judged by what each of its networks said of the fold that it was trained without.

    Raises:
        UserError: a leak between the splits, or no validation patients.
    """
    for fold in range(candidate.folds) if candidate.folds else [candidate.fold]:
        guard(prepared.index, fold)
    candidate.require_validated(prepared)
    names, used = tuple(prepared.labels.names), candidate.used_rows(prepared)

    def predict(split: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return predict_rows(model, prepared, used.get(split, np.empty(0, np.int64)), how.micro_batch, how.workers)

    def judge(logits: np.ndarray, columns: dict[str, np.ndarray]) -> tuple[Evaluation, Patients, SingleSlices | None]:
        patients = temperature.pool(logits, columns, unit=prepared.manifest.unit)
        single = None
        if len(patients.ids) < len(logits):
            single = SingleSlices.of(columns["label"], probabilities_of(logits, temperature), names)
        return evaluate(patients, names, how.bootstrap, candidate.seed), patients, single

    logits, columns = _out_of_fold(candidate, prepared) if candidate.folds else predict("val")
    temperature = fit_temperature(logits, columns["patient"], columns["label"])
    validation, validation_patients, single = judge(logits, columns)
    test, test_patients = None, None
    if "test" in used:
        test, test_patients, single = judge(*predict("test"))
    return PatientAssessment(
        candidate,
        prepared,
        temperature,
        names,
        validation,
        validation_patients,
        test,
        test_patients,
        candidate.usage(prepared),
        single,
    )


def _out_of_fold(candidate: Candidate, prepared: Prepared) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """As `predict_rows`: each row by the network that was trained without its fold."""
    predictions = read_predictions(Folder.at(candidate.checkpoint))
    return np.asarray(predictions["logits"]), prepared.columns(np.asarray(predictions["row"]), COLUMNS)
