"""The model card states where weights come from."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from raymed.model_card import _licence
from raymed.models.settings import ModelSettings


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (ModelSettings(preset="small-cnn+tiny"), "from random numbers"),
        (ModelSettings(preset="small-cnn+efficientnet-lite0"), "ImageNet weights under Apache-2.0"),
        (ModelSettings(path="/models/InternVL2_5-1B"), "InternVL2_5-1B, whose licence applies"),
    ],
)
def test_weights_that_somebody_else_made_are_named_with_their_licence(model: ModelSettings, says: str) -> None:
    assert says in _licence({"model": asdict(model)})
