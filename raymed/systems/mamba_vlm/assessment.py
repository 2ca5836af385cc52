"""The assessment of a report writer: its texts about patients that it has not seen, and the guards before them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raymed.data.labels import LabelTable
from raymed.data.prepared import Prepared
from raymed.errors import RunError
from raymed.evaluation import intervals
from raymed.evaluation.estimate import Estimate, flatten
from raymed.evaluation.findings import Findings
from raymed.evaluation.text_guards import CaptionLosses
from raymed.evaluation.text_metrics import RESAMPLES
from raymed.recipes.metric import VAL_LOSS, Metric
from raymed.registry.assessment import AssessmentSettings
from raymed.registry.candidate import Candidate
from raymed.registry.loss_assessment import LossAssessment
from raymed.spreadsheet import to_csv
from raymed.storage.availability import second_look
from raymed.storage.folder import Folder
from raymed.systems.mamba_vlm.evaluation import ReportEvaluation, Writer, evaluate_writer
from raymed.systems.mamba_vlm.settings import GenerationSettings
from raymed.training.predictions import read_predictions

if TYPE_CHECKING:
    from raymed.evaluation.search_summary import SearchSummary
    from raymed.registry.assessment import CardFacts
    from raymed.systems.mamba_vlm.network import ReportWriter
    from raymed.systems.mamba_vlm.recipe import ReportRecipe
    from raymed.tracking.tracker import Tracker

log = logging.getLogger("raymed")

TABLE = "chest_findings"
CAUTION = "Its texts are drafts of a machine that was judged by words and not by a reader: nobody may be treated by them."
THEN = "judge it on other patients: python jobs/evaluate_vlm.py --model {model} --data PREPARED --tracking-uri {tracking}"


@dataclass(frozen=True)
class ReportAssessment(LossAssessment):
    """A validation loss, and what the texts about patients of a split are worth.

    Attributes:
        split: whose texts were judged: test, or val where there are no test patients.
        evaluation: what was found.
    """

    split: str
    evaluation: ReportEvaluation

    @classmethod
    def judged(
        cls,
        candidate: Candidate,
        recipe: ReportRecipe,
        network: ReportWriter,
        prepared: Prepared,
        how: AssessmentSettings,
    ) -> ReportAssessment:
        """Raises: UserError: as `LossAssessment.of`, or one patient has most of the reports."""
        loss = LossAssessment.of(candidate, prepared, CAUTION, THEN)
        split = prepared.judged_split
        evaluation = evaluate_writer(
            Writer(recipe, network),
            prepared,
            prepared.rows(split, candidate.fold),
            Findings(LabelTable.open(TABLE)),
            GenerationSettings(),
            min(how.micro_batch, 8),
            seed=candidate.seed,
        )
        return cls(candidate, prepared, loss.val_loss, loss.caution, loss.then, split, evaluation)

    @property
    def test_ids(self) -> Sequence[str]:
        return sorted(map(str, self.evaluation.scores.patients)) if self.split == "test" else ()

    def figures(self) -> dict[str, float]:
        scores = self.evaluation.scores
        estimates = flatten({"loss": self.evaluation.loss, **scores.metrics})
        shares = scores.variety.shares | {"empty": float(scores.empty)}
        guards = {f"passed_{each.name.replace(' ', '_')}": float(each.passed) for each in self.evaluation.guards}
        return super().figures() | {f"{self.split}_{name}": value for name, value in (estimates | shares | guards).items()}

    def tags(self) -> dict[str, str]:
        metrics = {name: f"{figure.value:.3f}" for name, figure in self.evaluation.scores.metrics.items()}
        return super().tags() | metrics | {"guards": "passed" if self.evaluation.passed else "failed"}

    def headline(self) -> str:
        failed = [each.name for each in self.evaluation.guards if not each.passed]
        patients = f"{len(self.evaluation.scores.patients)} {self.split} patients"
        words = f"FAILED {', '.join(failed)}" if failed else "passed every guard"
        return (
            f"{patients}: {words}; loss {self.evaluation.loss}, finding F1 {self.evaluation.scores.metrics['finding_f1']}."
        )

    def lines(self) -> list[str]:
        return [f"{len(self.evaluation.scores.patients)} {self.split} patients:", *self.evaluation.lines]

    def files(self) -> dict[str, bytes]:
        return {"texts.csv": to_csv(self.evaluation.texts)}

    def log(self, tracker: Tracker) -> None:
        tracker.metrics(self.candidate.run_id, {n: v for n, v in self.figures().items() if n != VAL_LOSS.name})

    def card(self, facts: CardFacts) -> str:
        found = "\n".join(f"- {line.strip()}" for line in self.evaluation.lines)
        judged = f"## Judged on {len(self.evaluation.scores.patients)} {self.split} patients"
        name, *parts = super().card(facts).split("\n\n")
        at = parts.index("## Data")
        return "\n\n".join([name, *parts[:at], judged, found, *parts[at:]])

    def page(self, search: SearchSummary, facts: CardFacts) -> tuple[str, str]:
        """The guards first, then figures and findings, all trials, and where the data are from."""
        return "report.html", self.rendered(search, facts, "raymed.systems.mamba_vlm", "report.html", assessment=self)

    def artefact(self, facts: CardFacts, network: Path, folder: Path) -> Path:
        """A model that MLflow serves: it is asked about pictures and answers with texts."""
        from raymed.registry.served_model import save_served
        from raymed.registry.serving import NETWORK
        from raymed.systems.mamba_vlm import serving

        save_served(serving, {NETWORK: network}, serving.SIGNATURE, folder)
        return folder

    def differences(self, objective: Metric, others: Mapping[int, Folder]) -> dict[int, Estimate]:
        if objective != VAL_LOSS:
            return {}
        winner = Folder.at(self.candidate.checkpoint)
        own, differences = self._losses(winner), {}
        for number, checkpoint in others.items():
            try:
                losses = second_look(partial(self._losses, checkpoint), winner)
            except RunError as error:
                log.warning("trial %d is not compared with the best: %s", number, error)
                continue
            differences[number] = intervals.mean(losses - own, RESAMPLES, self.candidate.seed)
        return differences

    def above(self, other: Candidate, noted: Mapping[str, str]) -> Estimate | None:
        if (other.data_digest, other.fold) != (self.candidate.data_digest, self.candidate.fold):
            return None
        own, others = (self._losses(Folder.at(each.checkpoint)) for each in (self.candidate, other))
        return intervals.mean(own - others, RESAMPLES, self.candidate.seed)

    def _losses(self, checkpoint: Folder) -> np.ndarray:
        """Of each validation patient, by the predictions of a checkpoint."""
        predictions = read_predictions(checkpoint)
        patients = self.prepared.columns(predictions["row"], ["patient"])["patient"]
        return CaptionLosses(patients, predictions["nll"], predictions["tokens"]).by_patient
