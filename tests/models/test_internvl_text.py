"""Token ids and labels must be those that InternVL was trained with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymed.data.record import Message
from raymed.errors import UserError
from raymed.models.internvl_text import NO_LOSS, ChoicePrompt, byte_tokenizer, encode_turns, read_tokenizer, token_id

FOLDER = Path(__file__).parents[1] / "fixtures" / "internvl2_5"
SAMPLES: list[dict[str, Any]] = json.loads((FOLDER / "internvl2_5_tokens.json").read_text("utf-8"))
VOCABULARY = 3012


def _turns(sample: dict[str, Any]) -> list[Message]:
    return [Message(turn["from"], turn["value"]) for turn in sample["conversations"]]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample["name"])
def test_ids_and_labels_equal_the_published_preprocessing(sample: dict[str, Any]) -> None:
    per_tile = (sample["image_size"] // 28) ** 2
    tokenizer = read_tokenizer(FOLDER, VOCABULARY)
    ids, labels = encode_turns(tokenizer, _turns(sample), [per_tile * tiles for tiles in sample["tiles"]])
    assert ids == sample["input_ids"]
    assert labels == sample["labels"]


def test_choice_prompt_equals_the_sample_of_the_lung_task() -> None:
    tokenizer = read_tokenizer(FOLDER, VOCABULARY)
    prompt = ChoicePrompt.of(tokenizer, list("0123"))
    sample = next(sample for sample in SAMPLES if sample["name"] == "lung choice")
    context = token_id(tokenizer, "<IMG_CONTEXT>")
    ids = [*prompt.before, *[context] * 4, *prompt.after, prompt.choices[2], prompt.end]
    assert ids == sample["input_ids"][:-1]  # the line break behind the answer is never read
    assert [label for label in sample["labels"] if label != NO_LOSS] == [prompt.choices[2], prompt.end]


def test_files_of_the_original_layout_give_the_same_tokenizer_without_running_its_code(tmp_path: Path) -> None:
    content = json.loads((FOLDER / "tokenizer.json").read_text("utf-8"))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    added = content["added_tokens"]
    (tmp_path / "vocab.json").write_text(json.dumps(content["model"]["vocab"]), "utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges), "utf-8")
    (tmp_path / "added_tokens.json").write_text(json.dumps({token["content"]: token["id"] for token in added}), "utf-8")
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "added_tokens_decoder": {token["id"]: {k: v for k, v in token.items() if k != "id"} for token in added},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    remote_code = {"model_type": "internvl_chat", "auto_map": {"AutoConfig": "configuration.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(remote_code), "utf-8")
    (tmp_path / "configuration.py").write_text("raise SystemExit('remote code ran')", "utf-8")
    tokenizer = read_tokenizer(tmp_path, VOCABULARY)
    assert encode_turns(tokenizer, _turns(SAMPLES[0]), [4])[0] == SAMPLES[0]["input_ids"]


@given(st.text(max_size=40).filter(lambda text: "<" not in text))
def test_byte_tokenizer_loses_nothing(text: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        (["0", "1", "10"], "'1' and '10' have the same first token"),
        (["0", "12"], "'12' takes 2 tokens"),
        (["正常", "细菌"], "takes 6 tokens"),
        (["a", "a"], "same first token"),
    ],
)
def test_choices_that_one_token_cannot_tell_apart_are_refused(codes: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ChoicePrompt.of(byte_tokenizer(), codes)


def test_choices_keep_the_order_of_the_classes() -> None:
    tokenizer = byte_tokenizer()
    codes = list("3102")
    assert tokenizer.decode(list(ChoicePrompt.of(tokenizer, codes).choices)) == "3102"


def test_marks_and_pictures_must_agree_in_number() -> None:
    with pytest.raises(UserError, match="1 <image> marks for 2 pictures"):
        encode_turns(byte_tokenizer(), [Message("human", "<image>\nWhat?")], [4, 4])


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no usable tokenizer"):
        read_tokenizer(tmp_path, VOCABULARY)


def test_a_tokenizer_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="ids up to 3011, but the model's vocabulary ends at 3010"):
        read_tokenizer(FOLDER, VOCABULARY - 1)


def test_a_tokenizer_without_the_special_tokens_is_refused(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    text = (tmp_path / "tokenizer.json").read_text("utf-8").replace("<IMG_CONTEXT>", "<IMG_OTHER>")
    (tmp_path / "tokenizer.json").write_text(text, "utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}', "utf-8")
    with pytest.raises(UserError, match="lacks the special tokens <IMG_CONTEXT>"):
        read_tokenizer(tmp_path, VOCABULARY)
