"""The assessment of a network that is judged by its validation loss alone, as one that is used as a part of others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymed.data.leak import guard
from raymed.data.prepared import Prepared
from raymed.data.usage import Usage
from raymed.errors import UserError
from raymed.evaluation.estimate import Estimate
from raymed.recipes.metric import VAL_LOSS, Metric
from raymed.registry import model_card
from raymed.registry.candidate import Candidate
from raymed.storage.folder import Folder
from raymed.training.checkpoint import read_history, step_of

if TYPE_CHECKING:
    from raymed.evaluation.report import SearchSummary
    from raymed.registry.assessment import CardFacts
    from raymed.tracking.tracker import Tracker

_REFIT = (
    "**Loss and figures belong to the model before refitting.** The registered weights come from the same configuration, "
    "trained again on every {} of {}."
)


@dataclass(frozen=True)
class LossAssessment:
    """A validation loss, and what it does not say.

    Attributes:
        candidate: who was judged.
        prepared: the data it was trained on.
        val_loss: of its best epoch.
        caution: what the loss does not say, a sentence for the card.
        then: what a person does next, with the places {model} and {tracking}.
    """

    candidate: Candidate
    prepared: Prepared
    val_loss: float
    caution: str
    then: str

    @classmethod
    def of(cls, candidate: Candidate, prepared: Prepared, caution: str, then: str) -> LossAssessment:
        """The assessment of a candidate, from what its checkpoint noted.

        Raises:
            UserError: the checkpoint is not there any more or was never validated, or a patient is in two splits.
        """
        guard(prepared.index, candidate.fold)
        candidate.require_validated(prepared)
        checkpoint = Folder.at(candidate.checkpoint)
        history, step = read_history(checkpoint), step_of(Path(checkpoint.path).name)
        if not history:
            raise UserError(
                f"{checkpoint.uri} is of before the first validation, so nothing is known of it. Its network can be used as "
                f"it is: {then.format(model=checkpoint.uri, tracking='')}"
            )
        val_loss, validated = history[-1][VAL_LOSS.name], history[-1]["global_step"]
        before = "" if step == validated else f"{VAL_LOSS.name} is that of step {validated:g}, before it."
        return cls(candidate, prepared, val_loss, f"{before} {caution}".strip(), then)

    @property
    def usage(self) -> Usage:
        return self.candidate.usage(self.prepared)

    @property
    def test_ids(self) -> Sequence[str]:
        return ()

    def figures(self) -> dict[str, float]:
        return {VAL_LOSS.name: self.val_loss}

    def tags(self) -> dict[str, str]:
        return {VAL_LOSS.name: VAL_LOSS.format.format(self.val_loss)}

    def headline(self) -> str:
        return ""

    def lines(self) -> list[str]:
        return [f"{VAL_LOSS.show(self.val_loss)}: nobody was judged. {self.caution}"]

    def files(self) -> dict[str, bytes]:
        return {}

    def log(self, tracker: Tracker) -> None:
        """The run has its validation loss already."""

    def card(self, facts: CardFacts) -> str:
        guarded = guard(self.prepared.index, self.candidate.fold, self.prepared.manifest.patients_known)
        parts = [
            f"# {facts.name}",
            *filter(None, [facts.found_by, self.caution]),
            *model_card.looked_at(f"{self.prepared.manifest.unit}s", facts.looks),
            "## Data",
            f"Prepared data with digest `{self.prepared.digest}`; {guarded}.",
            *([f"Used of it: {facts.used}."] if facts.used else []),
            *([_REFIT.format(self.prepared.manifest.unit, " + ".join(facts.refit.splits))] if facts.refit else []),
            "## Licence",
            facts.licence or model_card.licence(facts.settings),
            "## Settings",
            f"```json\n{json.dumps(facts.settings, ensure_ascii=False, indent=2)}\n```",
        ]
        return "\n\n".join(parts) + "\n"

    def artefact(self, facts: CardFacts, network: Path, folder: Path) -> Path:
        return network

    def differences(self, objective: Metric, others: Mapping[int, Folder]) -> dict[int, Estimate]:
        return {}

    def above(self, other: Candidate, noted: Mapping[str, str]) -> Estimate | None:
        return None

    def page(self, search: SearchSummary, facts: CardFacts) -> tuple[str, str]:
        """All trials and how they went, and where the data are from; what was found on patients, where a system's own
        template says it (`rendered`)."""
        return "report.html", self.rendered(search, facts)

    def rendered(self, search: SearchSummary, facts: CardFacts, *template: str, **own: Any) -> str:
        """The page.

        Args:
            template: package and file, where it is the system's own.
            own: what that one shows besides.
        """
        from raymed.evaluation.search_page import render

        return render(
            search,
            *template,
            val_loss=self.val_loss,
            caution=self.caution,
            used=facts.used,
            found_by=facts.found_by,
            settings=facts.settings,
            refitted=facts.refit.splits if facts.refit else (),
            **own,
        )

    def next_step(self, uri: str, tracking_uri: str) -> str:
        return self.then.format(model=uri, tracking=tracking_uri)
