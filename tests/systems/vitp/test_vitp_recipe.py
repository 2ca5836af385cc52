"""The pretraining recipe: what the network reads is what the template says, and less of it where tokens are dropped."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conversations import MIXED, SIZE, conversation
from PIL import Image as PilImage

from raymed.data.record import Image, Message, Record
from raymed.data.tiles import cut
from raymed.errors import UserError
from raymed.models import internvl_config
from raymed.models.features import FeatureExtractor, FeatureSettings
from raymed.models.internvl_text import CONTEXT, NO_LOSS, byte_tokenizer, read_tokenizer, token_id
from raymed.models.settings import ModelSettings
from raymed.models.vision_tower import VisionTower
from raymed.recipes.exported import open_model
from raymed.recipes.recipe import Batch, Loss, TrainingPass
from raymed.systems.lung.recipe import LungRecipe
from raymed.systems.vitp.recipe import ChatLossSettings, VitpRecipe
from raymed.systems.vitp.token_drop import TokenDropSettings

FIXTURE = Path(__file__).parents[2] / "fixtures" / "internvl2_5"
SAMPLES: list[dict[str, Any]] = json.loads((FIXTURE / "internvl2_5_tokens.json").read_text("utf-8"))
RECIPE = VitpRecipe(SIZE, token_drop=TokenDropSettings(rate=0))
DROPPING = VitpRecipe(SIZE, token_drop=TokenDropSettings(0.75, "paper"))
EPOCH = TrainingPass(3, 1)


def total(loss: Loss) -> float:
    """The sum of the loss's only term."""
    return float(loss.terms["loss"].total.detach())


def predict(recipe: VitpRecipe, module: torch.nn.Module, batch: Batch) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in recipe.predict(module, batch).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with the published tokenizer, without weights: enough to encode."""
    path = tmp_path_factory.mktemp("model")
    read_tokenizer(FIXTURE, 3012).save_pretrained(path)
    internvl_config.internvl_config(SIZE, 64, 2, 2, 64, 2, 2, vocabulary=3012).save_pretrained(path)
    return path


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample["name"])
def test_ids_and_what_is_learned_equal_the_published_preprocessing(sample: dict[str, Any], folder: Path) -> None:
    size = sample["image_size"]
    recipe = replace(RECIPE, size=size, model=ModelSettings(path=str(folder)))
    images = []
    for place, tiles in enumerate(sample["tiles"]):  # the thumbnail is counted
        columns = tiles - 1 if tiles > 1 else 1
        images.append(Image("input", place, np.zeros((size, columns * size, 1), np.uint8)))
        if tiles > 1:
            images.append(Image("thumbnail", place, np.zeros((size, size, 1), np.uint8)))
    turns = tuple(Message(turn["from"], turn["value"]) for turn in sample["conversations"])
    tensors = recipe.encode([Record("s", "s", "s", 0, None, "made", tuple(images), turns)], EPOCH).tensors
    labels = np.full(len(sample["labels"]), NO_LOSS)
    labels[tensors["places"] + 1] = tensors["targets"]
    assert tensors["ids"].tolist() == sample["input_ids"]
    assert labels.tolist() == sample["labels"]
    assert tensors["positions"].tolist() == list(range(len(labels)))
    assert len(tensors["pixels"]) == sum(sample["tiles"])


def test_samples_lie_end_to_end_and_their_tiles_in_the_order_of_their_tokens() -> None:
    together = RECIPE.encode(MIXED, EPOCH)
    alone = [RECIPE.encode([record], EPOCH).tensors for record in MIXED]
    for name in ("pixels", "ids", "positions", "lengths", "targets", "weights", "learned"):
        assert torch.equal(together.tensors[name], torch.cat([each[name] for each in alone])), name
    context = token_id(byte_tokenizer(), CONTEXT)
    assert (together.tensors["ids"][together.tensors["image_places"]] == context).all()
    pair = cut(MIXED[3].images[1].pixels, SIZE)[1].transpose(2, 0, 1)  # the second picture's second tile, then its thumbnail
    assert np.array_equal(together.tensors["pixels"][-2], pair)
    thumbnail = cut(MIXED[3].images[2].pixels, SIZE)[0].transpose(2, 0, 1)
    assert np.array_equal(together.tensors["pixels"][-1], thumbnail)


def test_dropped_tokens_shorten_the_sequence_and_change_nothing_else() -> None:
    whole, short = RECIPE.encode(MIXED, EPOCH).tensors, DROPPING.encode(MIXED, EPOCH).tensors
    context = token_id(byte_tokenizer(), CONTEXT)
    image_tokens = [4 * tiles for tiles in (1, 3, 0, 4)]
    dropped = [int(0.75 * count) for count in image_tokens]
    assert (whole["lengths"] - short["lengths"]).tolist() == dropped
    for name in ("pixels", "targets", "weights", "learned"):
        assert torch.equal(whole[name], short[name]), name
    start_whole = start_short = 0
    for length, shorter in zip(whole["lengths"].tolist(), short["lengths"].tolist(), strict=True):
        ids, positions = whole["ids"][start_whole:][:length], short["positions"][start_short:][:shorter]
        assert torch.equal(ids[positions], short["ids"][start_short:][:shorter]), "survivors keep their positions"
        gone = sorted(set(range(length)) - set(positions.tolist()))
        assert (ids[gone] == context).all(), "only image tokens are dropped"
        start_whole, start_short = start_whole + length, start_short + shorter
    rank = {place: order for order, place in enumerate(whole["image_places"].tolist())}
    offsets = torch.repeat_interleave(whole["lengths"].cumsum(0) - whole["lengths"], short["lengths"])
    survivors = (short["positions"] + offsets)[short["image_places"]].tolist()
    assert short["kept"].tolist() == [rank[place] for place in survivors], "each place gets its own feature"


def test_as_the_guide_has_it_the_sequence_keeps_its_length_and_the_projector_hears_less() -> None:
    guide = replace(RECIPE, token_drop=TokenDropSettings(0.99, "guide"))
    whole, quiet = RECIPE.encode(MIXED, EPOCH), guide.encode(MIXED, EPOCH)
    assert all(torch.equal(whole.tensors[name], quiet.tensors[name]) for name in whole.tensors)
    silent = quiet.tensors["silent"]
    assert silent.shape == (4 * 8, 4) and silent.sum() == sum(int(0.3 * 16 * tiles) for tiles in (1, 3, 4))
    module = guide.build().eval()
    heard: list[torch.Tensor] = []
    projector = module.network.model.multi_modal_projector  # type: ignore[union-attr]
    projector.register_forward_hook(lambda _, inputs, output: heard.append(inputs[0]))
    for batch in (whole, quiet):
        guide.compute_loss(module, batch)
    before, after = (each.flatten(0, 1).unflatten(1, (4, -1)) for each in heard)
    assert torch.equal(after[~silent], before[~silent]) and not after[silent].any() and before[silent].any()
    dropped, image_tokens = guide.compute_loss(module, quiet).sums["dropped"]
    assert float(dropped) == silent.sum() / 4 and image_tokens == 32
    assert "silent" not in guide.encode(MIXED, None).tensors, "evaluation hears everything"


def test_a_sample_draws_the_same_tokens_in_any_batch_and_others_in_another_epoch() -> None:
    record = conversation("large", ((4, 3),))
    alone = DROPPING.encode([record], EPOCH).tensors["kept"]
    assert torch.equal(alone, DROPPING.encode([record, *MIXED], EPOCH).tensors["kept"][: len(alone)])
    assert not torch.equal(alone, DROPPING.encode([record], TrainingPass(3, 2)).tensors["kept"])


def test_a_sample_that_is_shown_again_in_an_epoch_draws_other_tokens() -> None:
    record = conversation("large", ((4, 3),))
    alone = DROPPING.encode([record], EPOCH).tensors
    once, offset = alone["kept"], len(alone["pixels"]) * (SIZE // 28) ** 2
    twice = DROPPING.encode([record, record], replace(EPOCH, repeat_counts=(0, 1))).tensors["kept"]
    again = twice[len(once) :] - offset
    assert torch.equal(twice[: len(once)], once)
    assert len(again) == len(once) and not torch.equal(again, once)
    assert torch.equal(DROPPING.encode([record], replace(EPOCH, repeat_counts=(1,))).tensors["kept"], again)


def test_a_right_choice_that_the_network_thinks_impossible_has_a_finite_loss() -> None:
    module = RECIPE.build()
    with torch.no_grad():
        module.network.lm_head.weight *= 1e4  # type: ignore[union-attr, operator]
    predicted = predict(RECIPE, module.eval(), RECIPE.encode(QUESTIONS, None))
    assert predicted["choice_nll"].max() > 200 and np.isfinite(predicted["choice_nll"]).all()


def test_nothing_is_dropped_or_recompressed_in_evaluation() -> None:
    recipe = replace(DROPPING, augmented=("made",))
    first, second = recipe.encode(MIXED, None), RECIPE.encode(MIXED, None)
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


QUESTIONS = tuple(
    replace(record, id=f"q{number}", messages=(*record.messages[:1], *turns))
    for number, (record, turns) in enumerate(
        [
            (MIXED[0], (Message("human", "<image>\n<cls>: 0|1|2|3."), Message("gpt", "2"))),
            (MIXED[3], (Message("human", "<image> at 10: 30 <image> <cls>： no | yes ."), Message("gpt", "yes"))),
            (
                MIXED[2],
                (
                    *(Message("human", "said: what?"), Message("gpt", "0 it is: long")),
                    *(Message("human", "<cls>: A|B|C."), Message("gpt", "A")),
                    *(Message("human", "and <cls>: X|Y."), Message("gpt", "Y")),
                ),
            ),
        ]
    )
)


@pytest.mark.parametrize("recipe", [RECIPE, DROPPING], ids=["whole", "dropping"])
def test_declared_choices_are_scored_where_their_answer_is_predicted(recipe: VitpRecipe) -> None:
    """Packed, in other turns than the first, for several pictures, and whatever was dropped before."""
    tensors = recipe.encode([MIXED[1], *QUESTIONS], EPOCH).tensors
    tokenizer = byte_tokenizer()
    answered = tensors["targets"][tensors["asked"]]
    assert tokenizer.decode(answered) == "2yAY"
    assert torch.equal(tensors["ids"][tensors["places"][tensors["asked"]] + 1], answered)
    declared = [tokenizer.decode(row[row >= 0]) for row in tensors["choices"]]
    assert declared == ["0123", "ny", "ABC", "XY"]
    assert tensors["answers"].tolist() == [2, 1, 0, 1]
    assert tensors["questions"].tolist() == [0, 1, 1, 2]
    assert tensors["choice_weights"].tolist() == [2, 4, (14 + 2 + 2) / 2, (14 + 2 + 2) / 2]


def test_the_choice_loss_of_a_batch_is_that_of_its_samples_alone_and_can_be_left_out() -> None:
    torch.manual_seed(0)
    module = DROPPING.build().eval()
    plain = replace(DROPPING, loss=ChatLossSettings(choice_weight=0))
    with torch.no_grad():
        together = DROPPING.compute_loss(module, DROPPING.encode(QUESTIONS, EPOCH))
        alone = [DROPPING.compute_loss(module, DROPPING.encode([record], EPOCH)) for record in QUESTIONS]
        without = plain.compute_loss(module, plain.encode(QUESTIONS, EPOCH))
    assert total(together) == pytest.approx(sum(total(each) for each in alone), rel=1e-5)
    summed = np.array([[float(value) for value in each.sums["choice_loss"]] for each in (together, *alone)])
    assert summed[0] == pytest.approx(summed[1:].sum(0), rel=1e-5)
    assert total(without) == pytest.approx(float(without.sums["token_loss"][0]), rel=1e-5) != total(together)


def test_validation_tells_how_many_declared_choices_are_right() -> None:
    torch.manual_seed(0)
    module = RECIPE.build().eval()
    batch = RECIPE.encode([MIXED[1], *QUESTIONS], None)
    predictions = predict(RECIPE, module, batch)
    assert predictions["questions"].tolist() == [0, 1, 1, 2] and (predictions["right"] <= predictions["questions"]).all()
    metrics = RECIPE.evaluate(predictions, {"source": np.array(["made"] * 4, dtype=object)})
    assert metrics["val_choice_accuracy"] == predictions["right"].sum() / 4
    assert 0 < metrics["val_choice_loss"] == pytest.approx(predictions["choice_nll"].sum() / 4)


def test_choices_that_cannot_be_told_apart_or_do_not_hold_the_answer_are_errors() -> None:
    def asked(question: str, answer: str) -> Record:
        return replace(MIXED[2], messages=(Message("human", question), Message("gpt", answer)))

    with pytest.raises(UserError, match="record text: the choices 'bacterial' and 'benign' have the same first token"):
        RECIPE.encode([asked("<cls>: bacterial|benign.", "benign")], None)
    with pytest.raises(UserError, match=r"record text: the answer '4' is not among the choices 0\|1"):
        RECIPE.encode([asked("<cls>: 0|1.", "4")], None)


def test_only_tiles_of_augmented_data_sets_are_recompressed_and_as_jpeg_does() -> None:
    record = conversation("tiled", ((2, 1),))
    records = [record, replace(record, id="other", source="plain")]
    changed = replace(RECIPE, augmented=("made",)).encode(records, EPOCH).tensors["pixels"].numpy()
    plain = RECIPE.encode(records, EPOCH).tensors["pixels"].numpy()
    assert np.array_equal(changed[3:], plain[3:])
    for before, after in zip(plain[:3], changed[:3], strict=True):
        qualities = []
        for quality in range(75, 101):
            file = io.BytesIO()
            PilImage.fromarray(before.transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
            qualities.append(np.asarray(PilImage.open(file)).transpose(2, 0, 1))
        assert any(np.array_equal(after, each) for each in qualities)


@pytest.mark.parametrize("reduction", ["token", "sample", "square"])
def test_the_loss_of_a_global_batch_does_not_depend_on_how_it_is_cut(reduction: str) -> None:
    recipe = replace(RECIPE, loss=ChatLossSettings(reduction))  # type: ignore[arg-type]
    torch.manual_seed(0)
    module = recipe.build().eval()

    def mean(cuts: list[list[Record]]) -> float:
        batches = [recipe.encode(records, EPOCH) for records in cuts]
        with torch.no_grad():
            summed = sum(total(recipe.compute_loss(module, batch)) for batch in batches)
            return summed / sum(batch.units["loss"] for batch in batches)

    whole = mean([list(MIXED)])
    assert mean([[record] for record in MIXED]) == pytest.approx(whole, rel=1e-5)
    predicted = predict(recipe, module, recipe.encode(MIXED, None))
    weights = {"token": lambda x: 1.0, "sample": lambda x: 1 / x, "square": lambda x: x**-0.5}[reduction]
    each = np.array([weights(tokens) for tokens in predicted["tokens"]])
    assert whole == pytest.approx((each * predicted["nll"]).sum() / (each * predicted["tokens"]).sum(), rel=1e-5)


def test_val_loss_is_the_mean_over_all_learned_tokens_and_over_those_of_each_data_set() -> None:
    predictions = {"nll": np.array([2.0, 9.0, 1.0]), "tokens": np.array([1, 3, 2]), "questions": np.zeros(3, int)}
    records = {"source": np.array(["a", "b", "a"], dtype=object)}
    metrics = RECIPE.evaluate(predictions, records)
    assert metrics == pytest.approx({"val_loss": 2.0, "val_perplexity": np.exp(2), "val_loss_a": 1.0, "val_loss_b": 3.0})


def test_the_loss_falls_on_a_few_memorised_samples() -> None:
    torch.manual_seed(0)
    module = DROPPING.build().train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    losses = []
    for step in range(12):
        batch: Batch = DROPPING.encode(MIXED[:2], TrainingPass(0, step))
        optimizer.zero_grad()
        total = DROPPING.compute_loss(module, batch).mean(batch.units)
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("layout", ["native", "internvl"])
def test_an_exported_network_comes_back_bit_for_bit(layout: str, tmp_path: Path) -> None:
    settings = ModelSettings(preset="internvl-tiny", vision_layer=-2)
    recipe = replace(RECIPE, layout=layout, model=settings, normalisation="siglip", augmented=("made",))  # type: ignore[arg-type]
    torch.manual_seed(0)
    module = recipe.build().eval()
    recipe.export(module, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == {"native": "internvl"}.get(
        layout, "internvl_chat"
    )
    found, loaded = open_model(tmp_path)
    assert found == recipe
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    batch = recipe.encode(MIXED, None)
    assert torch.equal(recipe.predict(module, batch)["nll"], recipe.predict(loaded, batch)["nll"])


@pytest.mark.parametrize("layout", ["native", "internvl"])
def test_a_vit_that_is_taken_out_normalises_pictures_as_it_was_trained_to(layout: str, tmp_path: Path) -> None:
    recipe = replace(RECIPE, layout=layout, model=ModelSettings(preset="internvl-tiny"), normalisation="siglip")  # type: ignore[arg-type]
    module = recipe.build()
    recipe.export(module, tmp_path / "model")
    VisionTower.read(tmp_path / "model").write(tmp_path / "again", layout)  # type: ignore[arg-type]
    VisionTower.read(tmp_path / "again").write(tmp_path / "vit", "native")
    for folder in ("model", "again", "vit"):
        extractor = FeatureExtractor(VisionTower.read(tmp_path / folder), FeatureSettings())
        assert extractor.normalise.scale == module.normalise.scale == [1 / 127.5] * 3
    classifier = LungRecipe(("a", "b"), ("a", "b"), SIZE, model=ModelSettings(path=str(tmp_path / "vit"))).build()
    assert classifier.normalise.shift == module.normalise.shift == [-1.0] * 3


def test_a_worker_gets_the_recipe_as_it_is() -> None:
    RECIPE.encode(MIXED, None)
    assert pickle.loads(pickle.dumps(RECIPE)) == RECIPE


def test_pictures_that_do_not_fit_are_named() -> None:
    record = conversation("odd", ((1, 1),))
    small = replace(record, images=(Image("input", 0, np.zeros((SIZE, 50, 1), np.uint8)),))
    with pytest.raises(UserError, match="record odd: a picture of 50x56 pixels"):
        RECIPE.encode([small], None)
    with pytest.raises(UserError, match="record odd: the conversation has 1 <image> marks for 0 pictures"):
        RECIPE.encode([replace(record, images=())], None)
    said = (Message("human", f"<image>\n{CONTEXT}?"), Message("gpt", "no"))
    with pytest.raises(UserError, match="record odd: its text holds <IMG_CONTEXT>"):
        RECIPE.encode([replace(record, messages=said)], None)
