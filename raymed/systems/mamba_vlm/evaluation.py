"""How good a report writer is on patients: loss, texts, and whether it passes the guards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from raymed.data.prepared import Prepared
from raymed.data.record import Record
from raymed.errors import UserError
from raymed.evaluation import intervals
from raymed.evaluation.estimate import Estimate
from raymed.evaluation.findings import Findings
from raymed.evaluation.text_guards import CaptionLosses, Guard, commonest_guard, shuffle_guard, simple_guard, swap_patients
from raymed.evaluation.text_metrics import RESAMPLES, Texts, TextScores, commonest, score_texts
from raymed.recipes.exported import open_model
from raymed.registry.address import resolve_model
from raymed.systems.mamba_vlm.guide_files import load_into, read_checkpoint
from raymed.systems.mamba_vlm.network import ReportWriter
from raymed.systems.mamba_vlm.paths import local_path
from raymed.systems.mamba_vlm.recipe import ReportRecipe
from raymed.systems.mamba_vlm.settings import GenerationSettings
from raymed.systems.mamba_vlm.texts import generate_texts
from raymed.tracking.tracker import Tracker

AT_ONCE = 256  # training reports that are read at a time


@dataclass(frozen=True, eq=False)
class Writer:
    """A report writer that was trained: its recipe and its network, in evaluation mode."""

    recipe: ReportRecipe
    network: ReportWriter

    @classmethod
    def open(cls, name: str, tracking: str) -> Writer:
        """The report writer that an address in MLflow, a run, a folder or a checkpoint file of the guide's names.

        Raises:
            UserError: there is none, or it is a model of another system, or of stage 1.
        """
        if name.endswith(".pt"):
            return cls._of_guide(local_path(name, Path.cwd()))
        recipe, network = open_model(resolve_model(name, Tracker.open(tracking)).network)
        if not isinstance(recipe, ReportRecipe) or not isinstance(network, ReportWriter):
            raise UserError(f"{name} is a model of {recipe.name}, not a report writer")
        return cls(recipe, network)

    @classmethod
    def _of_guide(cls, path: Path) -> Writer:
        checkpoint = read_checkpoint(path)
        settings = checkpoint.values.get("settings", {})
        if settings.get("recipe") != "mamba_vlm":
            raise UserError(f"{path} is no file of stage 2: train it first (jobs/train_vlm.py)")
        recipe = ReportRecipe.of_settings(settings)
        network = recipe.build()
        load_into(network, checkpoint, path)
        return cls(recipe, network.eval())


def training_data(name: str) -> str | None:
    """Address of the prepared data that a checkpoint file of the guide's was trained with; None of other models.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    if not name.endswith(".pt"):
        return None
    data = read_checkpoint(local_path(name, Path.cwd())).values.get("data")
    return None if data is None else str(data)


@dataclass(frozen=True, eq=False)
class ReportEvaluation:
    """What is known of a report writer.

    Attributes:
        guards: the tests that it has to pass first.
        loss: nats per token of each patient's reports, their mean with its interval.
        scores: of its texts.
        texts: a line for each report: patient, id, question, reference, generated text, and its loss.
    """

    guards: tuple[Guard, ...]
    loss: Estimate
    scores: TextScores
    texts: pd.DataFrame

    @property
    def passed(self) -> bool:
        return all(guard.passed for guard in self.guards)

    @property
    def lines(self) -> list[str]:
        """What a person reads: the guards first."""
        scores = self.scores
        return [
            *(f"{'passed' if guard.passed else 'FAILED'}: {guard.name}: {guard.words}" for guard in self.guards),
            f"caption loss {self.loss}",
            *(f"{name} {figure}" for name, figure in scores.metrics.items()),
            f"{scores.variety}; empty texts {scores.empty}",
            *(f"  {each.name}: F1 {each.f1} ({each.support} references, {each.named} texts)" for each in scores.findings),
        ]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, without the texts."""
        scores = self.scores
        return {
            "passed": self.passed,
            "guards": [asdict(guard) for guard in self.guards],
            "loss": asdict(self.loss),
            "metrics": {name: asdict(figure) for name, figure in scores.metrics.items()},
            "findings": [asdict(each) for each in scores.findings],
            "variety": asdict(scores.variety),
            "empty": scores.empty,
        }


def evaluate_writer(
    writer: Writer,
    prepared: Prepared,
    rows: np.ndarray,
    findings: Findings,
    generation: GenerationSettings,
    batch: int,
    simple: Writer | None = None,
    seed: int = 0,
) -> ReportEvaluation:
    """Judge a report writer on rows of prepared reports.

    Args:
        batch: how many reports are read at once.
        simple: one with a simpler bridge of the same size, to compare with.

    Raises:
        UserError: one patient has more than half of the reports.
    """
    for each in (writer, simple):
        if each is not None:
            each.network.to("cuda" if torch.cuda.is_available() else "cpu")
    swapped = rows[swap_patients(prepared.columns(rows, ["patient"])["patient"], seed)]
    own = caption_losses(writer, _records(prepared, rows, rows, batch))
    mixed = caption_losses(writer, _records(prepared, rows, swapped, batch))
    mixed = replace(mixed, patients=own.patients)  # whose text it is, not whose picture
    texts = _texts(writer, prepared, rows, generation, batch)
    texts["loss"] = own.nll / own.tokens
    patients, references = texts["patient_id"].to_numpy(), texts["reference"].tolist()
    scores = score_texts(Texts(patients, references, texts["generated"].tolist()), findings, seed=seed)
    always = commonest(_answers(prepared, prepared.rows("train")) or references)
    baseline = score_texts(Texts(patients, references, [always] * len(rows)), findings, seed=seed)
    guards = [shuffle_guard(own, mixed, seed), commonest_guard(scores, baseline, seed)]
    if simple is not None:
        other = caption_losses(simple, _records(prepared, rows, rows, batch))
        guards.append(simple_guard(own, other, f"{simple.recipe.bridge.kind} bridge", seed))
    return ReportEvaluation(tuple(guards), intervals.mean(own.by_patient, RESAMPLES, seed, least=0.0), scores, texts)


def caption_losses(writer: Writer, batches: Iterator[list[Record]]) -> CaptionLosses:
    """The loss of each report, given its picture and question."""
    patients: list[str] = []
    nll, tokens = [], []
    device = next(writer.network.parameters()).device
    for records in batches:
        predicted = writer.recipe.predict(writer.network, writer.recipe.encode(records, None).to(device))
        patients += [record.patient for record in records]
        nll.append(predicted["nll"].cpu().numpy())
        tokens.append(predicted["tokens"].cpu().numpy())
    return CaptionLosses(np.array(patients, dtype=object), np.concatenate(nll), np.concatenate(tokens))


def _records(prepared: Prepared, rows: np.ndarray, pictures: np.ndarray, batch: int) -> Iterator[list[Record]]:
    """Batches of records with the texts of `rows` and the pictures of other rows."""
    for start in range(0, len(rows), batch):
        texts, shown = (prepared.read(numbers[start : start + batch]) for numbers in (rows, pictures))
        yield [replace(seen, messages=text.messages) for text, seen in zip(texts, shown, strict=True)]


def _texts(writer: Writer, prepared: Prepared, rows: np.ndarray, generation: GenerationSettings, batch: int) -> pd.DataFrame:
    lines = []
    for records in _records(prepared, rows, rows, batch):
        for record, text in zip(records, generate_texts(writer.recipe, writer.network, records, generation), strict=True):
            turns = {turn.role: turn.text for turn in record.messages}
            whose = {"patient_id": record.patient, "id": record.id}
            lines.append(whose | {"question": turns["human"], "reference": turns["gpt"], "generated": text})
    return pd.DataFrame(lines)


def _answers(prepared: Prepared, rows: np.ndarray) -> list[str]:
    """The reports of rows, each as often as it stands there."""
    answers: Counter[str] = Counter()
    for start in range(0, len(rows), AT_ONCE):
        for record in prepared.read(rows[start : start + AT_ONCE]):
            answers.update(turn.text for turn in record.messages if turn.role == "gpt")
    return list(answers.elements())
