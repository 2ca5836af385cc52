"""Text encoders come from local folders only, read what they are given whole, and say what is wrong with a text."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from text_models import write_bert, write_clip
from transformers import AutoTokenizer, GPT2Config, GPT2Model

from raymed.errors import UserError
from raymed.models.text_encoder import TextModel

NAMES = ("normal", "肺炎")
TEXTS = (("a normal lung",), ("肺炎的图像", "viral pneumonia"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "bert-base-chinese"
    write_bert(folder)
    return folder


def test_berts_vector_is_the_state_of_its_first_token(bert: Path) -> None:
    text = TextModel.find(str(bert), [])
    tokens, mask = text.tokenize(NAMES, TEXTS)
    encoder = text.build().eval()
    network = write_bert(bert.parent / "same").bert
    for row, prompt in enumerate([prompt for prompts in TEXTS for prompt in prompts]):
        alone = AutoTokenizer.from_pretrained(bert)(prompt, return_tensors="pt")
        expected = network(**alone).last_hidden_state[0, 0]
        torch.testing.assert_close(encoder(tokens, mask)[row], expected, msg="padding must not be looked at")
    assert encoder.width == 32


def test_chinese_is_split_into_characters(bert: Path) -> None:
    tokenizer = TextModel.open(bert).tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer("肺炎的 pneumonias")["input_ids"]) == (
        ["[CLS]", "肺", "炎", "的", "pneumonia", "##s", "[SEP]"]
    )


def test_clips_vector_is_the_pooled_state_of_the_texts_end(tmp_path: Path) -> None:
    published = write_clip(tmp_path)
    text = TextModel.open(tmp_path)
    tokens, mask = text.tokenize(("a", "b"), (("lung",), ("big lung",)))
    encoded = text.build().eval()(tokens, mask)
    expected = published.text_model(input_ids=tokens, attention_mask=mask)
    torch.testing.assert_close(encoded, expected.pooler_output)
    ends = mask.sum(1) - 1
    torch.testing.assert_close(encoded, expected.last_hidden_state[torch.arange(2), ends])
    with pytest.raises(UserError, match="class 'a' has 26 tokens, and the text encoder takes 24"):
        text.tokenize(("a", "b"), (("lung " * 24,), ("lung",)))


def test_a_text_that_is_too_long_is_an_error_that_names_class_and_both_lengths(bert: Path) -> None:
    text = TextModel.open(bert)
    text.tokenize(NAMES, (("肺" * 62,), ("炎",)))
    with pytest.raises(UserError, match="class '肺炎' has 65 tokens, and the text encoder takes 64"):
        text.tokenize(NAMES, (("normal",), ("炎" * 63,)))


def test_texts_that_look_alike_to_the_encoder_are_refused_and_unknown_words_told(
    bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = TextModel.open(bert)
    with pytest.raises(UserError, match="'normal' and '肺炎' look alike"):
        text.tokenize(NAMES, (("normal lung",), ("Normal  LUNG",)))
    with pytest.raises(UserError, match="knows no word of the text of class '肺炎': 'κύστη'"):
        text.tokenize(NAMES, (("normal",), ("κύστη",)))
    with caplog.at_level(logging.WARNING, "raymed"):
        text.tokenize(NAMES, (("normal lung",), ("a cystic lung",)))
    assert "does not know 1 of the 5 tokens of the text of class '肺炎': a cystic lung" in caplog.text


def test_a_name_is_looked_up_among_the_folders_of_models(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMED_MODELS", f"/nowhere:{bert.parent}")
    assert TextModel.find("bert-base-chinese", []).folder == bert
    assert TextModel.find("google-bert/bert-base-chinese", []).folder == bert
    with pytest.raises(UserError, match=r"no model 'roberta'.*vocab\.txt.* into a folder roberta .*RAYMED_MODELS"):
        TextModel.find("roberta", [])
    monkeypatch.delenv("RAYMED_MODELS")
    with pytest.raises(UserError, match="RAYMED_MODELS is not set"):
        TextModel.find("bert-base-chinese", [])


def test_older_names_of_berts_layer_norms_are_understood_and_wrong_keys_named(tmp_path: Path) -> None:
    expected = write_bert(tmp_path).bert.state_dict()
    file = tmp_path / "model.safetensors"
    state = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in load_file(file).items()
    }
    save_file(state | {"bert.embeddings.position_ids": torch.arange(64)[None]}, file, metadata={"format": "pt"})
    loaded = TextModel.open(tmp_path).build().network.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.items())

    del state["bert.encoder.layer.1.output.dense.bias"]
    state["bert.encoder.layer.9.surplus"] = torch.zeros(1)
    state["bert.embeddings.word_embeddings.weight"] = state["bert.embeddings.word_embeddings.weight"][:-1]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(UserError) as error:
        TextModel.open(tmp_path).build()
    assert "1 missing: encoder.layer.1.output.dense.bias" in str(error.value)
    assert "layer.9.surplus" in str(error.value) and "word_embeddings.weight" in str(error.value)


def test_a_pickle_in_place_of_weights_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    write_bert(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"weights": Path("x")}))
    with pytest.raises(UserError, match=f"cannot load the text encoder in {tmp_path}"):
        TextModel.open(tmp_path).build()


def test_folders_that_are_no_text_encoder_are_refused(tmp_path: Path, bert: Path) -> None:
    with pytest.raises(UserError, match=r"holds no usable text encoder.*vocab\.txt"):
        TextModel.open(tmp_path)
    GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=50)).save_pretrained(tmp_path)
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((bert / name).read_bytes())
    config = (tmp_path / "config.json").read_text("utf-8")
    (tmp_path / "config.json").write_text(config.replace('"vocab_size": 50', '"vocab_size": 5'), "utf-8")
    with pytest.raises(UserError, match="do not belong together"):
        TextModel.open(tmp_path)


def test_characters_tell_any_class_texts_apart_with_random_weights() -> None:
    texts = [prompt for prompts in TEXTS for prompt in prompts]
    text = TextModel.find("characters", texts)
    tokens, mask = text.tokenize(NAMES, TEXTS)
    assert mask.sum(1).tolist() == [len(prompt) + 2 for prompt in texts]
    encoded = text.build().eval()(tokens, mask)
    assert float(torch.pdist(encoded).min()) > 0.5
    with pytest.raises(UserError, match="130 tokens, and the text encoder takes 128"):
        text.tokenize(NAMES, (("a" * 128,), ("肺",)))
