"""Text to token ids and back, and the marks around texts and pictures in a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from raymed.errors import UserError
from raymed.models.internvl_text import byte_tokenizer, tokenizer_digest
from raymed.models.marks import TURN_END, TURN_START

VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
MARKS = (TURN_START, TURN_END, VISION_START, VISION_END)


class TextTokens:
    """A tokenizer that knows the four marks of a sequence.

    Attributes:
        tokenizer: transformers' own.
        start, end: ids of the marks around a text.
        vision_start, vision_end: ids of the marks around a picture.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """A mark that the tokenizer lacks is added to it, behind its other ids."""
        missing = [mark for mark in MARKS if mark not in tokenizer.get_vocab()]
        if missing:
            tokenizer.add_tokens(missing, special_tokens=True)
        known = tokenizer.get_vocab()
        self.tokenizer = tokenizer
        self.start, self.end, self.vision_start, self.vision_end = (known[mark] for mark in MARKS)

    @classmethod
    def bytes(cls) -> TextTokens:
        """Single bytes and the marks, 261 ids: for networks with random weights."""
        return cls(byte_tokenizer(MARKS))

    @classmethod
    def read(cls, folder: Path) -> TextTokens:
        """The tokenizer of a checkpoint.

        Raises:
            UserError: there is none that can be read.
        """
        try:
            return cls(AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False))
        except Exception as error:  # the loaders below it raise many kinds
            raise UserError(
                f"{folder} has no usable tokenizer: {error}. Copy the released tokenizer files beside its weights"
            ) from error

    @property
    def size(self) -> int:
        """One more than the highest id."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @cached_property
    def digest(self) -> str:
        """Tells tokenizers apart."""
        return tokenizer_digest(self.tokenizer)

    def ids(self, text: str) -> list[int]:
        """Ids of a text, without marks around it; a mark that is spelled out in the text stays text."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def text(self, ids: Sequence[int]) -> str:
        """The text that ids stand for, without marks."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)
