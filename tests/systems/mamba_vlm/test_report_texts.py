"""Generated tokens as text."""

from typing import Any

import pytest
import torch
from report_records import SIZE, records

from raymed.data.image import ImageSettings
from raymed.systems.mamba_vlm.recipe import ReportRecipe
from raymed.systems.mamba_vlm.settings import BridgeSettings, GenerationSettings, VisionSettings
from raymed.systems.mamba_vlm.slices import Reading
from raymed.systems.mamba_vlm.texts import generate_texts

VISION = VisionSettings(preset="tiny", output_stage=2, target_side=4)
RECIPE = ReportRecipe(Reading(ImageSettings(size=SIZE)), vision=VISION, bridge=BridgeSettings(max_visual_tokens=16))


@pytest.mark.parametrize("cut", range(1, 3))
def test_a_limit_within_a_character_leaves_no_part_of_it_at_the_end_or_before_a_heading(cut: int) -> None:
    network: Any = RECIPE.build().eval()
    tokens = RECIPE.language_model.tokenizer
    above, below = (tokens(text)["input_ids"] for text in ("所见:双肺", "\n结论:清晰"))  # a token is a byte
    network.generate = lambda *asked: [above[:-cut] + below[:-cut]]
    with torch.no_grad():
        headed = GenerationSettings(headers=("所见", "结论"))
        assert generate_texts(RECIPE, network, records(1), headed) == ["所见:双\n结论:清"]
        network.generate = lambda *asked: [above[:cut]]
        assert generate_texts(RECIPE, network, records(1), GenerationSettings()) == [""]
