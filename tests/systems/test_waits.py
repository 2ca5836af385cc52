"""No recipe waits for a device between its batch and its results, and none mixes devices.

Tensors on `meta` have shapes and no values, so that whatever reads one fails; with a CUDA build of torch, which needs no
driver for it, fake tensors on `cuda` show besides where two devices meet. Each runs whole recipes, as the engine does. What
the engine and DeepSpeed ask besides is counted in a step on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from conversations import MIXED, SIZE
from device_reads import ON_CUDA_BUILDS, alone, pass_on_fake_cuda, pass_on_meta, reads_of_a_step
from worker_processes import run_workers

from raymed.data.labels import LabelTable
from raymed.data.record import Image, Message, Record
from raymed.models.settings import ClipModelSettings, ModelSettings
from raymed.recipes.recipe import Recipe
from raymed.recipes.settings import AugmentSettings
from raymed.systems.clip.recipe import ClipRecipe
from raymed.systems.clip.settings import ClipAugmentSettings, ClipLossSettings
from raymed.systems.lung.recipe import LungRecipe
from raymed.systems.vitp.recipe import VitpRecipe

LABELS = LabelTable.from_dict({"classes": [{"code": str(code), "name": name} for code, name in enumerate("abc")]})
ASKED = replace(
    MIXED[0], id="asked", messages=(*MIXED[0].messages[:1], Message("human", "<image>\n<cls>: 0|1."), Message("gpt", "1"))
)


def pictures(size: int) -> list[Record]:
    images = (Image("input", 0, np.zeros((size, size, 1), np.uint8)),)
    return [Record(f"p{row}/0", f"p{row}", f"p{row}", 0, row, "made", images, ()) for row in range(3)]


@dataclass(frozen=True)
class Case:
    recipe: Recipe
    records: Sequence[Record]


def lung(preset: str, size: int = 56, augment: Any = "light") -> Case:
    return Case(
        LungRecipe.for_data(LABELS, size, ModelSettings(preset), augment=AugmentSettings(augment, 1.0)), pictures(size)
    )


def clip(image: str, kind: Any, augment: Any = "standard", **model: Any) -> Case:
    settings = ClipModelSettings(image_encoder=image, text_encoder="characters", embed_dim=32, **model)
    texts = (("one",), ("two", "of two"), ("three",))
    recipe = ClipRecipe.for_data(LABELS, 40, texts, settings, ClipLossSettings(kind), ClipAugmentSettings(augment))
    return Case(recipe, pictures(recipe.prepared_size))


CASES: dict[str, Callable[[], Case]] = {
    "lung-internvl": lambda: lung("internvl-tiny"),
    "lung-resnet18": lambda: lung("resnet18", augment="flips"),
    "lung-vit": lambda: lung("vit-small", 224),
    "lung-ensemble": lambda: lung("tiny+small-cnn"),
    "clip-class": lambda: clip("tiny", "class", "minimal"),
    "clip-contrastive": lambda: clip("starnet_dual_pyramid_rcf", "clip"),
    "clip-frozen-text": lambda: clip("tiny", "class", "radiograph", freeze_text=True),
    "vitp": lambda: Case(VitpRecipe(SIZE), (*MIXED, ASKED)),
    "vitp-text": lambda: Case(VitpRecipe(SIZE), MIXED[2:3]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_and_a_prediction_read_no_value_from_the_device(name: str) -> None:
    case = CASES[name]()
    pass_on_meta(case.recipe, case.records)


ON_HOST = {"raymed/training/engine.py step": 2}  # what all workers know of the units, and were told
LENGTHS = {"raymed/models/packed_attention.py packing": 2}  # of samples in a pack: a batch keeps them on the host
DEEPSPEED = {  # the norm under ZeRO 3, by group
    "deepspeed/runtime/zero/stage3.py get_grad_norm_direct",
    "deepspeed/runtime/utils.py is_invalid_grad_norm",
}


@pytest.mark.slow
def test_a_step_on_a_card_waits_for_nothing_and_its_figures_come_in_one_transfer() -> None:
    """Behind each reading the device runs empty. Under ZeRO 3 DeepSpeed reads the norm."""
    run_workers(_count_reads)


def _count_reads(_: int) -> None:
    alone()
    for name in ("lung-internvl", "lung-ensemble", "clip-contrastive", "clip-frozen-text", "vitp"):
        case = CASES[name]()
        assert reads_of_a_step(case.recipe, case.records) == ON_HOST | (LENGTHS if name == "vitp" else {}), name
    assert reads_of_a_step(case.recipe, case.records, 2) == ON_HOST | LENGTHS
    sharded = reads_of_a_step(case.recipe, case.records, 3)
    assert sharded.keys() - DEEPSPEED == {*ON_HOST, *LENGTHS} and sharded.keys() & DEEPSPEED


@ON_CUDA_BUILDS
@pytest.mark.parametrize("name", CASES)
def test_a_forward_pass_on_cuda_mixes_no_devices_and_reads_no_value(name: str) -> None:
    case = CASES[name]()
    pass_on_fake_cuda(case.recipe, case.records)
