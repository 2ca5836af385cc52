"""The frozen part of a network: what it makes of rows is computed once a search, and not once a trial and epoch.

These features lie in the object store like decoded pixels, for the rows that nothing varies: those of validation, and those
of training where nothing is augmented. A worker takes them if the frozen part of its own network has the digest of the one
that made them, and computes them in every step otherwise.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError
from torch import nn

from raymed.cluster import connection as cluster
from raymed.data.places import Places
from raymed.data.record import records_from, with_features
from raymed.data.stream import Reader, Staged, Streamed, fits_in_memory
from raymed.errors import RunError, UserError
from raymed.models.precision import Arithmetic, arithmetic
from raymed.recipes.recipe import FrozenPart, PartlyFrozen, Recipe
from raymed.training.cards import keep_to_share
from raymed.training.network import first_network
from raymed.training.spec import RunSpec

if TYPE_CHECKING:
    from raymed.training.fit import Resources

log = logging.getLogger("raymed")

BLOCK = 128  # rows whose features are a block


@dataclass(frozen=True)
class WithFeatures:
    """Rows, and what a frozen part makes of those that nothing varies.

    Attributes:
        rows: all, with their pictures.
        features: records with features in place of the pictures that the part sees.
        digest: of the frozen part that made them.
        training: whether rows that are trained on are among them.
    """

    rows: Staged | Streamed
    features: Staged
    digest: str
    training: bool

    @property
    def size(self) -> int:
        """Bytes that lie in the object store."""
        return self.rows.size + self.features.size


Source = Staged | Streamed | WithFeatures


@dataclass(frozen=True)
class Readers:
    """Where a worker reads.

    Attributes:
        training: what it trains on.
        validation: what it is validated on.
        fact: about the frozen part, for a person; empty without one.
    """

    training: Reader
    validation: Reader
    fact: str = ""

    @classmethod
    def of(cls, source: Source, recipe: Recipe, module: nn.Module, computed: Arithmetic) -> Readers:
        """Of a network that is in training mode, with the weights that it goes on with."""
        part = frozen_part(recipe)
        rows = (source.rows if isinstance(source, WithFeatures) else source).open()
        if part is None or not isinstance(source, WithFeatures):
            return cls(rows, rows, "" if part is None else "computed in every step")
        if moving := unfrozen(part.of(module)):
            return cls(rows, rows, f"computed in every step: {moving}")
        if digest_of_part(module, part, computed) != source.digest:
            return cls(rows, rows, "computed in every step: its weights or settings are not those of the search's first run")
        kept = source.features.open()
        if part.varied or not source.training:
            return cls(rows, kept, "computed once for rows of validation, and in every step for those of training")
        return cls(kept, kept, "computed once")


def frozen_part(recipe: Recipe) -> FrozenPart | None:
    """The part of a recipe's network that is never trained; None without one."""
    return recipe.frozen_part if isinstance(recipe, PartlyFrozen) else None


def unfrozen(module: nn.Module) -> str:
    """What of a part of a network in training mode is trained or changes from pass to pass; empty where it stands still."""
    if trained := next((name for name, each in module.named_parameters() if each.requires_grad), ""):
        return f"{trained} is trained"
    moving = next((f"{type(each).__name__} {name}".strip() for name, each in module.named_modules() if each.training), "")
    return f"{moving} is in training mode" if moving else ""


def digest_of_part(module: nn.Module, part: FrozenPart, computed: Arithmetic) -> str:
    """What the outputs of a network's frozen part follow from, beside the pictures: settings, arithmetic, weights."""
    digest = hashlib.sha256(json.dumps([dict(part.settings), computed], sort_keys=True, default=str).encode())
    frozen = part.of(module)
    for name, tensor in [*frozen.named_parameters(), *frozen.named_buffers()]:
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def keep_features(
    specs: Sequence[RunSpec], rows: Staged | Streamed, whole: bool, each: Resources, tasks: int, beside: int = 0
) -> Source:
    """Compute what the first run's frozen part makes of the rows that these runs of the same data see as they are.

    Args:
        rows: of all these runs.
        whole: whatever their sampling.
        each: what a worker occupies.
        tasks: how many compute at once, where there are machines for them now: none is waited for.
        beside: bytes that are staged of other data.

    Returns:
        `rows` as they are where there is no frozen part, no machine or no room for its features: a line says so.

    Raises:
        UserError: the network, or a row, is not what the recipe needs.
    """
    spec, started = specs[0], time.monotonic()
    part = frozen_part(spec.recipe)
    if part is None:
        return rows
    tasks = min(tasks, _fitting(each))
    if not tasks:
        log.warning("frozen part: computed in every step: no machine that could compute it before the trials is there yet")
        return rows
    prepared = spec.open_data()
    training = not part.varied and any(every.is_whole_epoch(prepared) for every in specs)
    chosen = np.unique(np.concatenate([every.all_rows(prepared, whole, training) for every in specs]))
    if not len(chosen):  # nobody is validated on, and rows that are trained on are varied
        return rows
    blocks = [chosen[start : start + BLOCK] for start in range(0, len(chosen), BLOCK)]
    shares = [blocks[first::tasks] for first in range(min(tasks, len(blocks)))]
    make = _make.options(num_cpus=each.cpus, num_gpus=each.gpus, num_returns="streaming")
    makers: list[Any] = [make.remote(spec, [prepared.places(block) for block in share]) for share in shares]
    refs = list[ray.ObjectRef]()
    try:
        heads = [ray.get(next(maker)) for maker in makers]
        digest, moving = heads[0]
        if moving or len(set(heads)) > 1:
            log.warning("frozen part: computed in every step: %s", moving or "the cluster's machines differ")
            return rows
        refs.append(next(makers[0]))
        size = ray.get(refs[0]).nbytes * len(blocks)
        if not fits_in_memory(size + rows.size + beside):
            log.warning(
                "frozen part: computed in every step: its features of %d rows (%.0f MiB) do not fit the object store",
                *(len(chosen), size / 2**20),
            )
            return rows
        for maker in makers:
            *tables, end = maker
            ray.get(end)  # raises what the task has raised
            refs += tables
    except RayTaskError as error:
        if isinstance(error.cause, UserError | RunError):
            raise error.cause from None
        raise
    finally:
        if len(refs) < len(blocks):
            for maker in makers:
                ray.cancel(maker)
    held = [block for share in shares for block in share]
    log.info(
        "frozen part: features of %d rows computed once in %.0f s: %.1f MiB in the object store",
        *(len(chosen), time.monotonic() - started, size / 2**20),
    )
    features = Staged.of(refs, [len(block) for block in held], np.concatenate(held), size)
    return WithFeatures(rows, features, digest, training)


def _fitting(each: Resources) -> int:
    """How many workers the machines hold that are there now."""
    wanted = {"CPU": each.cpus} | ({"GPU": each.gpus} if each.gpus else {})
    return sum(min(int(machine.get(name, 0) // count) for name, count in wanted.items()) for machine in cluster.machines())


@ray.remote(max_calls=1)  # a process that stayed would keep its place on a card
def _make(spec: RunSpec, blocks: Sequence[Places]) -> Iterator[Any]:
    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
    device = torch.device("cuda", 0) if ray.get_gpu_ids() else torch.device("cpu")
    if device.type == "cuda":
        keep_to_share(device)
    yield from make_features(spec, blocks, device)


def make_features(spec: RunSpec, blocks: Sequence[Places], device: torch.device) -> Iterator[Any]:
    """The digest of a run's frozen part and why it is none; of each block its records with features; None at the end."""
    recipe = spec.recipe
    part = frozen_part(recipe)
    assert isinstance(recipe, PartlyFrozen) and part is not None
    module = first_network(recipe, spec.train, spec.seed, device, spec.start)
    computed = arithmetic(spec.train.precision, device)
    for parameter in module.parameters() if computed == "bf16" else ():
        parameter.data = parameter.data.bfloat16()  # and no buffers, as DeepSpeed does
    moving = unfrozen(part.of(module.train()))
    yield digest_of_part(module, part, computed), moving
    module.eval()
    for places in blocks if not moving else ():
        table = places.read()
        records, micro, features = records_from(table), spec.train.packs_at_once, list[np.ndarray]()
        for start in range(0, len(records), micro):
            with torch.inference_mode():
                batch = recipe.encode(records[start : start + micro], None).to(device)
                features += [row.float().cpu().numpy() for row in recipe.features(module, batch)]
        yield with_features(table, features, part.roles)
    yield None
