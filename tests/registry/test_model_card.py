"""The model card states where weights come from."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from raymed.data.prepared import Prepared
from raymed.models.settings import ModelSettings
from raymed.registry.model_card import licence, near_duplicates


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (ModelSettings(preset="small-cnn+tiny"), "from random numbers"),
        (ModelSettings(preset="small-cnn+efficientnet-lite0"), "ImageNet weights under Apache-2.0"),
        (ModelSettings(path="/models/InternVL2_5-1B"), "InternVL2_5-1B, whose licence applies"),
    ],
)
def test_weights_that_somebody_else_made_are_named_with_their_licence(model: ModelSettings, says: str) -> None:
    assert says in licence({"model": asdict(model)})


@pytest.mark.parametrize(
    ("groups", "mode", "says"),
    [
        ([], "group", "no patients share near-duplicate pictures"),
        ([["a", "b"]], "group", "1 group of patients who share near-duplicate pictures, each kept in one split"),
        ([["a", "b"]], "warn", "NOT kept in one split (near_duplicates warn)"),
    ],
)
def test_near_duplicates_are_said_to_be_kept_together_only_where_they_were(
    groups: list[list[str]], mode: str, says: str, prepared: Prepared
) -> None:
    settings = prepared.manifest.settings | {"near_duplicates": mode}
    manifest = replace(prepared.manifest, near_duplicates=groups, settings=settings)
    assert says in near_duplicates(replace(prepared, manifest=manifest))
