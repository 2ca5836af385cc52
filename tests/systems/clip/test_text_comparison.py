"""Class texts are compared on the same patients, and each class's nearest rival is named."""

from __future__ import annotations

import pytest
import torch
from conftest import write_prepared

from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.models.settings import ClipModelSettings
from raymed.systems.clip.class_texts import class_texts
from raymed.systems.clip.recipe import ClipRecipe
from raymed.systems.clip.text_comparison import Texts


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return write_prepared(tmp_path_factory.mktemp("clip") / "data", size=35)


def recipe_of(prepared: Prepared, template: str) -> ClipRecipe:
    texts = class_texts(prepared.labels.names, template)
    return ClipRecipe.for_data(prepared.labels, 32, texts, ClipModelSettings("tiny", None, "characters", 16))


def test_the_same_texts_differ_in_nothing_and_others_are_judged_on_the_same_patients(prepared: Prepared) -> None:
    recipe, rows = recipe_of(prepared, "a picture of {class_name}"), prepared.rows("val")
    torch.manual_seed(0)
    network = recipe.build().eval()
    first = Texts.of("own", (recipe, network), prepared, rows, None, 0)
    same = Texts.of("again", (recipe, network), prepared, rows, first, 0)
    assert same.more_loss is not None and same.more_loss.value == 0
    assert same.more_accurate is not None and same.more_accurate.value == 0
    assert set(first.nearest) == set(prepared.labels.names)
    for own, (other, cosine) in first.nearest.items():
        assert other != own and -1 <= cosine <= 1 + 1e-6
    assert "nearest is the text of" in "\n".join(first.lines()) and first.describe()["more_loss"] is None


def test_the_order_in_which_a_file_names_the_classes_changes_nothing(prepared: Prepared) -> None:
    recipe, rows = recipe_of(prepared, "a picture of {class_name}"), prepared.rows("val")
    torch.manual_seed(0)
    network = recipe.build().eval()
    first = Texts.of("own", (recipe, network), prepared, rows, None, 0)
    turned = recipe.with_texts(tuple(reversed(recipe.names)), tuple(reversed(recipe.texts)))
    torch.manual_seed(0)
    other = turned.build().eval()
    other.load_state_dict(network.state_dict())
    again = Texts.of("turned", (turned, other), prepared, rows, first, 0)
    assert again.loss == pytest.approx(first.loss, abs=1e-5) and again.nearest.keys() == first.nearest.keys()


def test_texts_of_other_classes_are_refused(prepared: Prepared) -> None:
    recipe = recipe_of(prepared, "{class_name}")
    asked = recipe.with_texts(("yes", "no"), (("y",), ("n",)))
    with pytest.raises(UserError, match="has texts for yes, no, and the data have the classes normal"):
        Texts.of("other.json", (asked, asked.build().eval()), prepared, prepared.rows("val"), None, 0)
