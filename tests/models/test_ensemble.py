"""Networks trained side by side, whose probabilities are averaged."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from raymed.errors import UserError
from raymed.models import classifiers
from raymed.models.settings import ModelSettings

CODES = ("0", "1", "2", "3")


def _pixels() -> torch.Tensor:
    return torch.randint(0, 256, (3, 1, 64, 64), dtype=torch.uint8)


def test_its_probability_is_the_mean_of_its_members() -> None:
    ensemble, pixels = classifiers.build(ModelSettings(preset="tiny+tiny+small-cnn"), CODES, 64).eval(), _pixels()
    each = [member(pixels)["logits"].softmax(1) for member in ensemble.members]
    assert not torch.allclose(each[0], each[1]), "members start alike"
    torch.testing.assert_close(ensemble(pixels)["logits"].softmax(1), torch.stack(each).mean(0))


def test_a_member_learns_what_it_would_learn_alone() -> None:
    ensemble, pixels = classifiers.build(ModelSettings(preset="tiny+small-cnn"), CODES, 64), _pixels()
    labels, alone = torch.tensor([0, 1, 2]), ensemble.members[0]
    F.cross_entropy(alone(pixels)["logits"], labels).backward()
    expected = [parameter.grad.clone() for parameter in alone.parameters()]
    ensemble.zero_grad()
    voices = ensemble(pixels)["member_logits"]
    F.cross_entropy(voices.flatten(0, 1), labels.repeat(2), reduction="sum").div(3).backward()
    for parameter, gradient in zip(alone.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_only_members_with_given_weights_are_frozen_and_scaled() -> None:
    settings = ModelSettings(preset="small-cnn+efficientnet-lite0", freeze_vision=True, trainable_blocks=11)
    drawn, given = classifiers.build(settings, CODES, 64).members
    assert all(parameter.requires_grad for parameter in drawn.parameters())
    assert [any(p.requires_grad for p in block.parameters()) for block in given.backbone.blocks] == [False] * 6 + [True] * 11
    ensemble = classifiers.build(settings, CODES, 64)
    assert len(list(ensemble.image_backbone.parameters())) == len(list(given.backbone.parameters()))


def test_an_unknown_member_is_named() -> None:
    with pytest.raises(UserError, match=r"'tiny\+resnet19' is unknown"):
        classifiers.check(ModelSettings(preset="tiny+resnet19"), CODES, 64)


def test_a_committee_of_language_models_is_refused() -> None:
    with pytest.raises(UserError, match="unknown"):
        classifiers.check(ModelSettings(preset="tiny+internvl-tiny"), CODES, 56)
