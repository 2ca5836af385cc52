"""How a search is run, as a person says it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from raymed.errors import UserError
from raymed.tuning.space import Space, Value

KeepCheckpoints = Literal["best", "all", "champion"]


@dataclass(frozen=True)
class Halving:
    """Asynchronous successive halving on epochs.

    Attributes:
        first_rung: Epochs before the first decision (0 = never stop a trial early).
        reduction: At each rung one in so many goes on; the next rung is this many times later.
    """

    first_rung: int = 1
    reduction: int = 3

    def __post_init__(self) -> None:
        if self.first_rung < 0 or self.reduction < 2:
            raise UserError("search.halving needs a first_rung from 0 up and a reduction from 2 up")

    def after(self, warm_up: int) -> Halving:
        """With no decision before some trials have warmed up: until then losses say more about that than about settings."""
        return replace(self, first_rung=max(self.first_rung, warm_up)) if self.first_rung else self


@dataclass(frozen=True)
class SearchSettings:
    """How a search is run.

    Attributes:
        space: Settings that are searched, by dotted name (see raymed/tuning/space.py).
        objective: What trials are compared by, each by its best epoch: val_loss, or another metric that the system declares
            for it.
        first: Settings of the trials after the first, before anything is drawn, such as the points of a grid: some of the
            searched ones by name, the others as configured.
        halving: When trials are stopped early.
        concurrent: Trials at once (0 = as many as the cluster holds).
        cpus_per_worker: CPUs of each training worker (0 = with GPUs, a GPU's share of its machine's; without them one,
            or, of a single run on this machine, all there are between them).
        gpus_per_worker: Share of a GPU that a training worker takes, of its memory too, where there are GPUs: with 0.25
            four trials share a card. Small networks do not fill one. With auto as many share it as fit into it, at most
            eight, by what one is seen to need before the search begins.
    """

    space: Space = field(default_factory=dict)
    objective: str = "val_loss"
    first: tuple[dict[str, Value], ...] = ()
    halving: Halving = field(default_factory=Halving)
    concurrent: int = 0
    cpus_per_worker: int = 0
    gpus_per_worker: float | Literal["auto"] = 1.0

    def __post_init__(self) -> None:
        if self.concurrent < 0 or self.cpus_per_worker < 0:
            raise UserError("search.concurrent and search.cpus_per_worker are counts: 0, or how many")
        if self.gpus_per_worker != "auto" and not 0 < self.gpus_per_worker <= 1:
            raise UserError("search.gpus_per_worker is a share of a GPU: more than 0, at most 1; or auto")
