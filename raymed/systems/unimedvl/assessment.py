"""The assessment of the unified network: its answers and drawings about patients that it has not seen, beside guessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raymed.data.prepared import Prepared
from raymed.recipes.metric import VAL_LOSS
from raymed.registry.candidate import Candidate
from raymed.registry.loss_assessment import LossAssessment
from raymed.systems.unimedvl.evaluation import Evaluation, evaluate_rows
from raymed.systems.unimedvl.evaluation_files import answers_csv, pictures_png
from raymed.systems.unimedvl.reader import Reader
from raymed.systems.unimedvl.tokens import TextTokens
from raymed.systems.unimedvl.tool_settings import DrawingSettings, TextSettings

if TYPE_CHECKING:
    from raymed.evaluation.search_summary import SearchSummary
    from raymed.registry.assessment import CardFacts
    from raymed.systems.unimedvl.network import UniMedVL
    from raymed.tracking.tracker import Tracker

LIMIT = 100  # most questions, and most pictures, that a model is judged by
PASSES_OF_A_PICTURE = 25  # forward passes that take as long as to draw one in 50 steps; an answer takes fewer
WRITING = TextSettings(max_new_tokens=128, do_sample=False)
DRAWING = DrawingSettings()
CAUTION = "Its answers and pictures are a machine's, judged by figures and not by a reader: nobody may be treated by them."
THEN = "ask it: python jobs/vqa.py --model {model} --tracking-uri {tracking}"


@dataclass(frozen=True)
class GeneralistAssessment(LossAssessment):
    """A validation loss, and what answers and drawings about patients of a split are worth.

    Attributes:
        split: whose they are: test, or val where there are no test patients.
        evaluation: what was judged; nothing where the data neither ask about a picture nor have one drawn from another.
    """

    split: str
    evaluation: Evaluation

    @classmethod
    def judged(cls, candidate: Candidate, network: UniMedVL, folder: Path, prepared: Prepared) -> GeneralistAssessment:
        """Raises: UserError: as `LossAssessment.of`.

        Args:
            folder: that the network was read from.
        """
        loss = LossAssessment.of(candidate, prepared, CAUTION, THEN)
        split = prepared.judged_split
        reader = Reader(network, TextTokens.read(folder), WRITING, DRAWING, candidate.seed)
        rows = prepared.rows(split, candidate.fold)
        evaluation = evaluate_rows(reader, prepared, rows, LIMIT, candidate.seed, candidate.fold)
        return cls(candidate, prepared, loss.val_loss, loss.caution, loss.then, split, evaluation)

    @property
    def test_ids(self) -> Sequence[str]:
        return self.evaluation.patients if self.split == "test" else ()

    def figures(self) -> dict[str, float]:
        return super().figures() | {f"{self.split}_{name}": value for name, value in self.evaluation.figures().items()}

    def tags(self) -> dict[str, str]:
        named = {name: f"{estimate.value:.3f}" for name, estimate in self.evaluation.metrics().items()}
        return super().tags() | named

    def headline(self) -> str:
        judged = "; ".join(self.evaluation.verdicts())
        return f"{len(self.evaluation.patients)} {self.split} patients: {judged}." if judged else ""

    def lines(self) -> list[str]:
        if not self.evaluation.patients:
            return super().lines()
        return [f"{len(self.evaluation.patients)} {self.split} patients:", *self.evaluation.lines()]

    def files(self) -> dict[str, bytes]:
        """`answers.csv`, every answer, and `pictures.png`, inputs, targets and drawings side by side."""
        files = {}
        if self.evaluation.answers:
            files["answers.csv"] = answers_csv(self.evaluation.answers)
        if self.evaluation.drawings:
            files["pictures.png"] = pictures_png(self.evaluation.drawings)
        return files

    def log(self, tracker: Tracker) -> None:
        tracker.metrics(self.candidate.run_id, {n: v for n, v in self.figures().items() if n != VAL_LOSS.name})

    def card(self, facts: CardFacts) -> str:
        found = "\n".join(f"- {line.strip()}" for line in self.lines())
        name, *parts = super().card(facts).split("\n\n")
        at = parts.index("## Data")
        return "\n\n".join([name, *parts[:at], f"## Judged on {self.split} patients", found, *parts[at:]])

    def artefact(self, facts: CardFacts, network: Path, folder: Path) -> Path:
        """A model that MLflow serves: it answers and draws."""
        from raymed.registry.served_model import save_served
        from raymed.registry.serving import NETWORK
        from raymed.systems.unimedvl import serving

        save_served(serving, {NETWORK: network}, serving.signature(), folder, ("diffusers", "accelerate"))
        return folder

    def page(self, search: SearchSummary, facts: CardFacts) -> tuple[str, str]:
        """One HTML page: the figures, pictures side by side, all trials, and the card's facts."""
        from raymed.systems.unimedvl.report import render

        return "report.html", render(self, search, facts)
