"""What training takes of memory under ZeRO 3, worked out before anything is started.

States follow from counts of weights (Rajbhandari et al. 2020, arXiv:1910.02054, section 3) and are exact but for padding;
activations are estimated.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from raymed.models.answer_head import LOGITS
from raymed.systems.unimedvl.settings import NetworkSizes, UnifiedModelSettings

if TYPE_CHECKING:
    from raymed.systems.unimedvl.recipe import UniMedVLRecipe
    from raymed.training.spec import RunSpec

log = logging.getLogger("raymed")

GIB = 2**30
GATHERED = 1_000_000_000  # weights that DeepSpeed holds whole at once, at most (stage3_max_live_parameters)
BUCKET = 500_000_000  # gradients that are summed over workers at once, at most
LARGE = 10**9  # weights from which on a plan is worth a line
WORKERS = (8, 16, 32)


@dataclass(frozen=True)
class Counts:
    """Numbers in the network.

    Attributes:
        trained, frozen: weights of the network.
        autoencoder: weights of the image autoencoder, whole on every worker in float32.
    """

    trained: int
    frozen: int
    autoencoder: int

    @classmethod
    def of(cls, sizes: NetworkSizes, model: UnifiedModelSettings) -> Counts:
        """Of a network that is built without memory."""
        from raymed.systems.unimedvl.network import UniMedVL

        with torch.device("meta"):
            network = UniMedVL(sizes)
        network.freeze(model)
        trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        whole = sum(parameter.numel() for parameter in network.parameters())
        return cls(trained, whole - trained, sum(parameter.numel() for parameter in network.autoencoder.parameters()))


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each worker under ZeRO 3.

    Attributes:
        weights: the worker's share.
        gradients: the worker's share.
        optimizer: its share of float32 weights and AdamW's two moments.
        average: its share of averaged weights, float32.
        working: weights gathered for the layer at hand, and gradients on their way.
        autoencoder: whole.
        activations: of a sequence, estimated, and logits.
        offloaded: of these, what lies in the machine's memory: shares of weights, gradients, optimizer, average.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    working: int
    autoencoder: int
    activations: int
    offloaded: int

    @property
    def device(self) -> int:
        """On the worker's card."""
        states = self.weights + self.gradients + self.optimizer + self.average
        return states + self.working + self.autoencoder + self.activations - self.offloaded


def memory_plan(
    sizes: NetworkSizes,
    counts: Counts,
    workers: int,
    tokens: int,
    weight_bytes: int = 2,
    averaged: bool = True,
    offload: bool = False,
    recomputed: bool = True,
) -> MemoryPlan:
    """What each worker needs under ZeRO 3.

    Args:
        tokens: of the longest sequence.
        weight_bytes: of a weight as it is computed with: 2 in bf16, 4 in float32.
        averaged: whether averaged weights are kept (`train.ema`).
        offload: the shares of weights, gradients, optimizer and average lie in the machine's memory (`train.offload`).
        recomputed: activations are computed again in the backward pass (`model.gradient_checkpointing`).
    """
    trained, whole = counts.trained, counts.trained + counts.frozen
    gradients, optimizer = weight_bytes * trained // workers, 12 * trained // workers
    average = 4 * trained // workers if averaged else 0
    working = weight_bytes * (min(whole, GATHERED) + min(trained, BUCKET)) if workers > 1 else 0
    weights = weight_bytes * whole // workers
    return MemoryPlan(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        average=average,
        working=working,
        autoencoder=4 * counts.autoencoder,
        activations=_activations(sizes, tokens, weight_bytes, recomputed) + 3 * 4 * LOGITS,
        offloaded=weights + gradients + optimizer + average if offload else 0,
    )


def _activations(sizes: NetworkSizes, tokens: int, weight_bytes: int, recomputed: bool) -> int:
    """Of a sequence through the decoder: what each layer keeps for the backward pass, or its input and one layer's all."""
    language = sizes.language
    keys = language.key_value_heads * language.head_width
    kept = 6 * language.hidden + 2 * keys + 4 * language.intermediate  # numbers a token, with fused attention
    numbers = language.layers * language.hidden + kept if recomputed else language.layers * kept
    return tokens * numbers * weight_bytes


def memory_table(sizes: NetworkSizes, counts: Counts, tokens: int) -> list[str]:
    """Lines about several numbers of workers in bf16, with and without offload."""
    lines = []
    for workers in WORKERS:
        on_card = memory_plan(sizes, counts, workers, tokens)
        spared = memory_plan(sizes, counts, workers, tokens, offload=True)
        lines.append(
            f"{workers:>3} GPUs: {on_card.device / GIB:.0f} GiB each; with offload {spared.device / GIB:.0f} GiB each and "
            f"{spared.offloaded / GIB:.0f} GiB of the machine's memory for each"
        )
    return lines


def log_memory_plan(spec: RunSpec) -> None:
    """Say what a large network takes, before it is started."""
    recipe: UniMedVLRecipe = spec.recipe  # type: ignore[assignment]
    counts = Counts.of(recipe.sizes, recipe.model)
    if counts.trained + counts.frozen < LARGE:
        return
    tokens = spec.sampling.max_num_tokens * spec.train.packs_at_once  # type: ignore[attr-defined]
    log.info(
        "memory under ZeRO 3 in bf16, %.1f billion weights of which %.1f are trained, sequences of %d tokens:",
        *((counts.trained + counts.frozen) / 1e9, counts.trained / 1e9, tokens),
    )
    for line in memory_table(recipe.sizes, counts, tokens):
        log.info("  %s", line)
