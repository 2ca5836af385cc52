"""The conversation template `internvl2_5`: turns of text to token ids and labels, and the prompt with declared choices."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from raymed.data.choices import parse_answer, parse_choices
from raymed.data.record import Message
from raymed.errors import UserError
from raymed.models.marks import CONTEXT, IMAGE, IMAGE_END, IMAGE_START, PADDING, REQUIRED, TURN_END, TURN_START

NO_LOSS = -100
SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"

_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
MARKS = (TURN_START, IMAGE_START, IMAGE_END, CONTEXT, "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")


def byte_tokenizer(marks: Sequence[str] = MARKS) -> PreTrainedTokenizerBase:
    """A tokenizer of single bytes and marks, by default InternVL's (268 ids): for networks with random weights."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PADDING,
        eos_token=TURN_END,
        extra_special_tokens=list(marks),
    )


def read_tokenizer(folder: Path, vocabulary: int) -> PreTrainedTokenizerBase:
    """The tokenizer in a model folder, checked against the model's vocabulary size.

    Raises:
        UserError: there is none, a special token is missing, or ids lie beyond the vocabulary.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the loaders below it raise many kinds
        raise UserError(
            f"{folder} has no usable tokenizer: {error}. Copy the tokenizer files beside config.json."
        ) from error
    known = tokenizer.get_vocab()
    missing = [token for token in REQUIRED if token not in known]
    if missing:
        raise UserError(f"the tokenizer in {folder} lacks the special tokens {', '.join(missing)}: it is not InternVL's")
    if max(known.values()) >= vocabulary:
        raise UserError(
            f"the tokenizer in {folder} has ids up to {max(known.values())}, but the model's vocabulary ends at "
            f"{vocabulary - 1}: they do not belong together"
        )
    return tokenizer


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Tells tokenizers apart: of the vocabulary, and of how some text is cut."""
    probe = tokenizer("Ground glass, 12.5 mm;\n\n  双肺磨玻璃影。<img>", add_special_tokens=False)["input_ids"]
    content = repr((sorted(tokenizer.get_vocab().items()), list(probe)))
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of one special token."""
    return int(tokenizer.get_vocab()[token])


def encode_turns(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], image_tokens: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Token ids and labels of a conversation; only answers and the end of their turn are learned.

    Each piece is tokenised by itself, as in InternVL 2.5's training, so that no token spans two pieces.

    Args:
        turns: roles system (only first; InternVL's own system message otherwise), human and gpt.
        image_tokens: how many tokens each picture takes, in the order of their ``<image>`` marks in human turns.

    Raises:
        UserError: marks and pictures differ in number.
    """
    if not turns or turns[0].role != "system":
        turns = [Message("system", SYSTEM), *turns]
    marks = sum(turn.text.count(IMAGE) for turn in turns if turn.role == "human")
    if marks != len(image_tokens):
        raise UserError(f"the conversation has {marks} {IMAGE} marks for {len(image_tokens)} pictures")
    pictures = iter(image_tokens)
    ids: list[int] = []
    labels: list[int] = []
    for turn in turns:
        text = turn.text
        if turn.role == "human":
            first, *others = text.split(IMAGE)
            text = first + "".join(f"{IMAGE_START}{CONTEXT * next(pictures)}{IMAGE_END}{other}" for other in others)
        opening = f"{TURN_START}{_ROLES[turn.role]}\n"
        piece = _ids(tokenizer, f"{opening}{text}{TURN_END}\n")
        ids += piece
        if turn.role == "gpt":  # not learned: what opens the turn, and the line break after it
            learned = slice(len(_ids(tokenizer, opening)), -1)
            labels += [NO_LOSS] * learned.start + piece[learned] + [NO_LOSS]
        else:
            labels += [NO_LOSS] * len(piece)
    return ids, labels


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with declared choices (``<cls>: a|b|c.``) in an encoded conversation.

    Attributes:
        place: of the answer's first token.
        choices: the choices' first tokens, as they are declared.
        answer: which of them is right.
    """

    place: int
    choices: tuple[int, ...]
    answer: int


def choice_questions(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], labels: Sequence[int]
) -> list[ChoiceQuestion]:
    """The questions with declared choices in a conversation that `encode_turns` gave these labels.

    Raises:
        UserError: an answer that was not declared, or choices that their first tokens do not tell apart.
    """
    learned = [label != NO_LOSS for label in labels]
    starts = (place for place, here in enumerate(learned) if here and not learned[place - 1])  # one for each answer
    questions, choices = [], None
    for turn in turns:
        try:
            if turn.role == "gpt":
                place = next(starts)
                if choices is not None:
                    answer = choices.index(parse_answer(choices, turn.text))
                    questions.append(ChoiceQuestion(place, first_tokens(tokenizer, tuple(choices)), answer))
            choices = parse_choices(turn.text) if turn.role == "human" else None
        except ValueError as error:
            raise UserError(str(error)) from error
    return questions


@lru_cache(maxsize=1024)
def first_tokens(tokenizer: PreTrainedTokenizerBase, choices: tuple[str, ...]) -> tuple[int, ...]:
    """The first token of each choice where it is an answer; the softmax over them is the probability of the choices.

    Raises:
        UserError: two choices have the same one.
    """
    owners: dict[int, str] = {}
    for choice in choices:
        token = _answer(tokenizer, choice)[0]
        if token in owners:
            raise UserError(
                f"the choices {owners[token]!r} and {choice!r} have the same first token: give the classes codes of one "
                "character, such as 0, 1, 2, 3"
            )
        owners[token] = choice
    return tuple(owners)


def _answer(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens that are learned of an answer, and that of the end of the turn."""
    opening = f"{TURN_START}{_ROLES['gpt']}\n"
    return _ids(tokenizer, f"{opening}{text}{TURN_END}\n")[len(_ids(tokenizer, opening)) : -1]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class ChoicePrompt:
    """The question with declared choices, which is the same for every picture.

    Attributes:
        before: ids up to the picture, ``<img>`` included.
        after: ids from behind the picture to the place where the answer is predicted.
        choices: the answers' ids, in the order of the classes.
        end: id of the end of the turn, which is learned behind the answer.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    choices: tuple[int, ...]
    end: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, codes: Sequence[str]) -> ChoicePrompt:
        """The prompt ``<cls>: 0|1|2|3.`` for the classes' codes.

        Raises:
            UserError: a code takes more than one token, or two codes have the same first token.
        """
        question = f"{IMAGE}\n<cls>: {'|'.join(codes)}."
        context = token_id(tokenizer, CONTEXT)
        choices = first_tokens(tokenizer, tuple(codes))
        for code in codes:
            if (tokens := len(_answer(tokenizer, code)) - 1) != 1:
                raise UserError(
                    f"the choice {code!r} takes {tokens} tokens, but the answer is one token: give the class a code of one "
                    "character, such as 0, in the label table"
                )
        ids, _ = encode_turns(tokenizer, [Message("human", question), Message("gpt", codes[0])], [1])
        picture, answer = ids.index(context), len(ids) - 3
        return cls(tuple(ids[:picture]), tuple(ids[picture + 1 : answer]), choices, ids[-2])
