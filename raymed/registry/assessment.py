"""How good a trial is, as its system says it: what is written down, shown, registered, and what a person does next.

A recipe gives an assessment of its own (`Recipe.assess`); whoever picks the trial, the search or a person, goes through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from raymed.data.usage import Usage
from raymed.evaluation.estimate import Estimate
from raymed.recipes.metric import Metric
from raymed.registry.candidate import Candidate, Refit
from raymed.storage.folder import Folder

if TYPE_CHECKING:
    from raymed.evaluation.report import SearchSummary
    from raymed.tracking.tracker import Tracker


@dataclass(frozen=True)
class AssessmentSettings:
    """How a trial is assessed.

    Attributes:
        micro_batch: rows that are predicted at once.
        workers: Ray actors that predict; 1 works in this process.
        bootstrap: resamples of patients behind an interval.
    """

    micro_batch: int = 32
    workers: int = 1
    bootstrap: int = 1000


@dataclass(frozen=True)
class CardFacts:
    """What the card of a model says besides how good it is.

    Attributes:
        name: of the model, e.g. ``raymed-lung-1f2e3d4c``.
        found_by: how it was chosen, a sentence.
        settings: the recipe's, as `Recipe.settings` gives them.
        used: what was trained and validated on, in words.
        refit: the same configuration, trained again on more rows; None where the judged network itself is registered.
        licence: what the user states; empty where it follows from the weights.
        looks: how many models the test patients have judged so far; 0 without test patients.
    """

    name: str
    found_by: str
    settings: Mapping[str, Any]
    used: str = ""
    refit: Refit | None = None
    licence: str = ""
    looks: int = 1


class Assessment(Protocol):
    """How good a candidate is. No method but `files` names a patient."""

    @property
    def usage(self) -> Usage:
        """Patients and rows of each split that it was trained and judged on."""
        ...

    @property
    def test_ids(self) -> Sequence[str]:
        """The test patients that were looked at, sorted; empty where none were."""
        ...

    def figures(self) -> dict[str, float]:
        """Every figure under a name of its own, for MLflow and for ``--json``."""
        ...

    def tags(self) -> dict[str, str]:
        """The figures by which versions of a model are told apart."""
        ...

    def headline(self) -> str:
        """One sentence with the most important figures; empty where nobody was judged."""
        ...

    def lines(self) -> list[str]:
        """What is shown on a terminal."""
        ...

    def files(self) -> dict[str, bytes]:
        """Tables and pictures of single patients, by file name: for the storage, never for MLflow."""
        ...

    def log(self, tracker: Tracker) -> None:
        """Write figures of the candidate's run to MLflow."""
        ...

    def card(self, facts: CardFacts) -> str:
        """The model card, as Markdown."""
        ...

    def artefact(self, facts: CardFacts, network: Path, folder: Path) -> Path:
        """What is registered for an exported network: a folder, `folder` or the network's own."""
        ...

    def differences(self, objective: Metric, others: Mapping[int, Folder]) -> dict[int, Estimate]:
        """How much worse other trials are over the same patients, by number; those that cannot be compared are left out.

        Args:
            objective: what trials were compared by.
            others: their best checkpoints.
        """
        ...

    def above(self, other: Candidate, noted: Mapping[str, str]) -> Estimate | None:
        """By how much worse it is than another model, over the same patients; None where that is not known.

        Args:
            noted: what MLflow knows of the other model: figures of its run, and tags of its version, which go before them.

        Raises:
            UserError, RunError: what the other model left is gone, damaged, or of other patients.
        """
        ...

    def page(self, search: SearchSummary, facts: CardFacts) -> tuple[str, str]:
        """The report of the search that the candidate won: its file name and its text."""
        ...

    def next_step(self, uri: str, tracking_uri: str) -> str:
        """What a person may do with the registered model, in one line; empty where it needs no word."""
        ...
