"""The seam between a system and the machine that trains it.

A new system is one file beside this one, a model, and a job. Training, tuning, evaluation and tracking know a system only
through `Recipe`; none of them asks which recipe it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from raymed.data.record import Record
from raymed.recipes.metric import Metric

if TYPE_CHECKING:
    from raymed.data.prepared import Prepared
    from raymed.registry.assessment import Assessment, AssessmentSettings
    from raymed.registry.candidate import Candidate

TOKENS = "tokens"

Predictions = dict[str, Any]
"""By name a value for every row: an array [rows, ...], a list of texts, or a list of pictures, uint8 [height, width] or
[height, width, 3], each of its own size."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters trained alike: at `lr_scale` times the run's learning rate, with its weight decay or none."""

    name: str
    parameters: list[nn.Parameter]
    lr_scale: float = 1.0
    decay: bool = True


@dataclass(frozen=True)
class Batch:
    """What one micro-batch needs, as tensors on the host.

    Attributes:
        tensors: inputs by name; moved to the device by the loop.
        units: of each term of the loss, over how many units (slices, tokens, latents) it sums here. Every batch of a recipe
            names the same terms; 0 where the batch has none of a term's units.
        ids: the record ids, in order.
        on_host: names of tensors that decide shapes and so stay on the host: reading them from a device would wait for it.
        on_arrival: what is still to be done to the tensors where they are computed on; None where nothing is.
    """

    tensors: dict[str, torch.Tensor]
    units: dict[str, float]
    ids: list[str]
    on_host: tuple[str, ...] = ()
    on_arrival: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch, its tensors on `device` but for those of `on_host`, with nothing left to be done to them."""
        moved = {
            name: tensor if name in self.on_host else tensor.to(device, non_blocking=True)
            for name, tensor in self.tensors.items()
        }
        return replace(self, tensors=self.on_arrival(moved) if self.on_arrival else moved, on_arrival=None)


@dataclass(frozen=True)
class LossTerm:
    """A term of the loss: `total` is a scalar, summed over the micro-batch's units of the term and divided by nothing."""

    total: torch.Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class Loss:
    """The terms of a micro-batch's loss, and named sums to log.

    `terms` has the names of `Batch.units`; a term without units may be left out. Each is divided by its own units in the
    whole global batch, over all micro-batches and workers, and multiplied by its weight: the loss is their sum. A term that
    has no units in a global batch counts as nothing.

    `sums[name]` is (sum, count); the loop adds both over micro-batches and workers and logs sum / count. A sum may be a
    scalar on the device: it is read with all others, once a step. `sums[TOKENS]`, of a language model, is how many tokens it
    reads (of texts, and of pictures that lie among them), with a count of 0: they are told a second.
    """

    terms: dict[str, LossTerm]
    sums: dict[str, tuple[torch.Tensor | float, float]] = field(default_factory=dict)

    def mean(self, units: Mapping[str, float], scale: float = 1.0) -> torch.Tensor:
        """`scale` times the sum of the terms' means over `units`: those of this batch, or of the one that it is a part of.

        A term without units is multiplied by 0, so that all workers have gradients of the same parameters.
        """
        shares = [
            term.total * (term.weight * scale / units[name] if units[name] else 0.0) for name, term in self.terms.items()
        ]
        return torch.stack(shares).sum() if len(shares) > 1 else shares[0]


@dataclass(frozen=True)
class TrainingPass:
    """Where in training a micro-batch is encoded. Augmentation draws from (seed, epoch, `keys`) and nothing else.

    Attributes:
        repeat_counts: of each record, how often the epoch has shown it before; empty where each is shown once.
    """

    seed: int
    epoch: int
    repeat_counts: tuple[int, ...] = ()

    def keys(self, ids: Sequence[str]) -> list[str]:
        """Of each record, its id and which showing it is: one that is shown again is varied anew."""
        shown = self.repeat_counts or (0,) * len(ids)
        return [f"{name}\0{count}" if count else name for name, count in zip(ids, shown, strict=True)]


class Recipe(Protocol):
    """One system. Implementations are frozen dataclasses of settings, cheap to build and to send to a worker."""

    @property
    def name(self) -> str:
        """Name of the system, e.g. ``lung``: the MLflow experiment and the registered model are named after it."""
        ...

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What an epoch's figures mean, `VAL_LOSS` among them. `evaluate` may give more, one of each class or source say."""
        ...

    @property
    def contrastive(self) -> bool:
        """Whether the loss compares the packs of a micro-batch with each other (`train.norm_group` of them)."""
        ...

    def build(self) -> nn.Module:
        """The network with its starting weights, from a local folder or from a configuration; never from the network.

        Raises:
            UserError: the folder's keys, tokenizer or configuration do not fit.
        """
        ...

    def groups(self, module: nn.Module) -> list[ParameterGroup]:
        """All trainable parameters, each once; frozen ones are absent."""
        ...

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        """One micro-batch from records; `training` is None when evaluating (no augmentation)."""
        ...

    def compute_loss(self, module: nn.Module, batch: Batch) -> Loss:
        """The training loss: its terms, each summed over its units in the batch.

        Calls `module(...)` once, so that ZeRO's hooks see it, and every trained parameter has a part in it, also where a
        term has no units here: workers sum their gradients parameter by parameter.
        """
        ...

    def predict(self, module: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """What `Predictions` holds, for the rows of the batch; in place of arrays tensors on the batch's device, e.g.
        ``logits`` [rows, classes], float32."""
        ...

    def evaluate(self, predictions: Predictions, records: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics over all validation rows, each present exactly once; contains ``val_loss``.

        Args:
            predictions: `predict`'s outputs for all these rows.
            records: the index columns ``id``, ``patient``, ``label`` ... of the same rows, in the same order.
        """
        ...

    def assess(self, candidate: Candidate, network: Path, prepared: Prepared, how: AssessmentSettings) -> Assessment:
        """How good a trial is at the end of a search, or when a person picks it: the test rows are looked at here only.

        Args:
            candidate: the trial.
            network: a local copy of the network that `export` wrote.
            prepared: the data that it was trained on.

        Raises:
            UserError: a patient is in two splits, or there is nobody to judge it on.
        """
        ...

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write what a user can load without raymed's training code (safetensors, configuration, tokenizer)."""
        ...

    def load(self, folder: Path) -> nn.Module:
        """The network that `export` wrote, ready to predict, on the CPU in float32 or its stored type."""
        ...

    def settings(self) -> dict[str, Any]:
        """Every setting as plain values: logged to MLflow, stored beside the exported weights."""
        ...


@dataclass(frozen=True)
class FrozenPart:
    """A part of the network that training leaves as it is, and that stands still in it: no dropout, no batch's statistics.

    Attributes:
        module: the part's name within the network, also of one that is held outside of its parameters.
        settings: what decides its outputs, beside its weights and the pictures, as plain values.
        varied: whether training varies what the part sees; if so, only rows of validation are seen as they are.
        roles: of a record's pictures, those that nothing but the part sees.
    """

    module: str
    settings: Mapping[str, Any]
    varied: bool
    roles: tuple[str, ...] = ("input", "thumbnail")

    def of(self, network: nn.Module) -> nn.Module:
        """The part itself."""
        part: nn.Module = attrgetter(self.module)(network)
        return part


@runtime_checkable
class PartlyFrozen(Protocol):
    """A recipe whose network may have a frozen part.

    What that makes of rows which nothing varies is computed once a search. `encode` finds it in `Record.features`, and of
    the pictures that it was made of their sizes only, and puts it in the batch for `compute_loss` and `predict`.
    """

    @property
    def frozen_part(self) -> FrozenPart | None:
        """None where all of the network is trained, or may be."""
        ...

    def features(self, module: nn.Module, batch: Batch) -> Iterable[torch.Tensor]:
        """The outputs of the frozen part for each row of a batch of pictures, of whatever shape; `module` is in evaluation
        mode."""
        ...


@runtime_checkable
class Checked(Protocol):
    """A recipe that knows, without loading weights, which settings its network cannot take."""

    def check(self) -> None:
        """Raises: UserError: says which setting, and what to do."""
        ...


class Probe(Protocol):
    """What a network is judged by at each validation, beside its validation rows: labelled rows of other data, say.

    Attributes:
        data: URI of the prepared data.
        digest: what they hold.
        metrics: what `evaluate` gives.
    """

    @property
    def data(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def metrics(self) -> tuple[Metric, ...]: ...

    def rows(self, prepared: Prepared) -> np.ndarray:
        """The rows that are asked about, ascending."""
        ...

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        """As a recipe's, and so are the others."""
        ...

    def predict(self, module: nn.Module, batch: Batch) -> Mapping[str, Any]: ...

    def evaluate(self, predictions: Predictions, records: dict[str, np.ndarray]) -> dict[str, float]: ...


@runtime_checkable
class Probed(Protocol):
    """A recipe that may have a probe; its metrics are among the recipe's."""

    @property
    def probe(self) -> Probe | None:
        """None where there is none."""
        ...


def probe_of(recipe: Recipe) -> Probe | None:
    """A recipe's probe; None without one."""
    return recipe.probe if isinstance(recipe, Probed) else None


@runtime_checkable
class SlowlyJudged(Protocol):
    """A recipe whose assessment takes longer than one look at each row: texts are written, or pictures drawn."""

    def judging_passes(self, rows: int) -> float:
        """How many forward passes over a row the assessment takes.

        Args:
            rows: of val and test.
        """
        ...
