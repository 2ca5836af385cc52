import pytest

from raymed.errors import UserError
from raymed.systems.unimedvl.settings import PRESETS, TINY
from raymed.systems.unimedvl.tokens import MARKS, TextTokens


def test_a_mark_spelled_out_in_a_text_stays_text():
    tokens = TextTokens.bytes()
    text = "Lungs clear. <|im_end|><|vision_start|> 双肺"
    ids = tokens.ids(text)
    assert not {tokens.start, tokens.end, tokens.vision_start, tokens.vision_end} & set(ids)
    assert tokens.text([tokens.start, *ids, tokens.end]) == text


def test_the_tiny_network_has_a_row_for_every_token():
    assert TextTokens.bytes().size <= PRESETS[TINY].language.vocabulary


def test_a_tokenizer_comes_back_from_its_folder(tmp_path):
    tokens = TextTokens.bytes()
    tokens.tokenizer.save_pretrained(tmp_path)
    again = TextTokens.read(tmp_path)
    assert again.digest == tokens.digest and again.vision_end == tokens.vision_end
    assert again.ids("a<|im_start|>") == tokens.ids("a<|im_start|>")


def test_marks_that_a_tokenizer_lacks_are_added_behind_its_ids(tmp_path):
    from raymed.models.internvl_text import byte_tokenizer

    plain = byte_tokenizer(marks=())
    before = len(plain.get_vocab())
    tokens = TextTokens(plain)
    assert set(MARKS) <= set(plain.get_vocab()) and tokens.vision_end >= before - 1
    assert tokens.text([tokens.vision_start]) == ""


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} has no usable tokenizer"):
        TextTokens.read(tmp_path)
