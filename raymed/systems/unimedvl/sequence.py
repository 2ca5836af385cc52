"""Sequences: in which order a sample's texts and pictures stand, which of them are learned, and which may be dropped.

Every class of data sets has a plan, a function from a sample to the elements of its sequence. Plans are made when data are
prepared and stored with the record, one message for each element, so that training needs no plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from raymed.data.record import Message
from raymed.errors import UserError
from raymed.models.marks import IMAGE
from raymed.systems.unimedvl.samples import Sample, without_marks

Kind = Literal["human", "gpt", "vit", "vae", "target"]
KINDS = get_args(Kind)
DROPPABLE = "?"  # behind the kind of a stored element
REDRAW = "Then draw the picture again as it is."  # what is asked of a sample whose pictures are reconstructed


@dataclass(frozen=True, slots=True)
class Element:
    """One part of a sequence.

    Attributes:
        kind: a text that is given (human) or learned (gpt), or a picture: as the ViT sees it (vit), as the autoencoder sees
            it (vae), or to be drawn (target).
        text: of a text.
        place: of a picture, counted through the sample's inputs and outputs.
        droppable: whether training may leave it out, for guidance without a condition.
    """

    kind: Kind
    text: str = ""
    place: int = 0
    droppable: bool = False

    @property
    def is_text(self) -> bool:
        return self.kind in ("human", "gpt")

    @property
    def learned(self) -> bool:
        return self.kind in ("gpt", "target")


Plan = Callable[[Sample], Iterable[Element]]


@dataclass(frozen=True)
class CondDropout:
    """How often training leaves out a condition that may be left out.

    Attributes:
        text: probability for a text.
        vit: for a picture as the ViT sees it.
        vae: for a picture as the autoencoder sees it.
    """

    text: float = 0.1
    vit: float = 0.3
    vae: float = 0.3

    def __post_init__(self) -> None:
        for name, share in vars(self).items():
            if not 0 <= share <= 1:
                raise UserError(f"the dropout probability of {name} is {share}: it must be from 0 to 1")

    def dropped(self, elements: Sequence[Element], draws: np.random.Generator | None) -> list[bool]:
        """Which elements are left out; none without a generator. Each takes one draw, whatever becomes of it."""
        if draws is None:
            return [False] * len(elements)
        shares = {"human": self.text, "vit": self.vit, "vae": self.vae}
        return [
            element.droppable and draw < shares.get(element.kind, 0.0)
            for element, draw in zip(elements, draws.random(len(elements)), strict=True)
        ]


def sequence_of(sample: Sample, plan: Plan, droppable: bool = False) -> tuple[Element, ...]:
    """The elements of a sample.

    Args:
        droppable: whether all conditions of pictures to draw may be dropped, whatever the plan says.

    Raises:
        ValueError: the plan does not take the sample, leaves a picture out, or nothing of it is learned.
    """
    elements = tuple(plan(sample))
    if not any(element.learned for element in elements):
        raise ValueError("nothing to learn: no answer and no picture to draw")
    if unused := set(range(len(sample.pictures))) - {element.place for element in elements if not element.is_text}:
        raise ValueError(f"picture {min(unused) + 1} of {len(sample.pictures)} is not used by the class's plan")
    if droppable and any(element.kind == "target" for element in elements):
        elements = tuple(replace(element, droppable=not element.learned) for element in elements)
    return elements


def to_messages(elements: Sequence[Element]) -> tuple[Message, ...]:
    """As a record stores a sequence: the kind as role, with a question mark where droppable; a picture's place as text."""
    return tuple(
        Message(element.kind + DROPPABLE * element.droppable, element.text if element.is_text else str(element.place))
        for element in elements
    )


def from_messages(messages: Sequence[Message]) -> tuple[Element, ...]:
    """The sequence that `to_messages` stored.

    Raises:
        UserError: the messages are no sequence.
    """
    elements = []
    for message in messages:
        kind = message.role.removesuffix(DROPPABLE)
        if kind not in KINDS or (kind not in ("human", "gpt") and not message.text.isdecimal()):
            raise UserError(f"{message.role!r} is no element of a sequence: prepare the data with jobs/prepare_unimedvl.py")
        element = Element(kind, droppable=message.role.endswith(DROPPABLE))  # type: ignore[arg-type]
        is_text = element.is_text
        elements.append(replace(element, text=message.text) if is_text else replace(element, place=int(message.text)))
    return tuple(elements)


def understanding(sample: Sample) -> Iterator[Element]:
    """Pictures where the questions have them, as the ViT sees them, and all turns in order."""
    places = iter(range(len(sample.inputs)))
    for message in sample.messages:
        if message.role == "human":
            yield from _interleaved(message.text, places, droppable=True)
        elif text := without_marks(message.text):
            yield Element("gpt", text)


def understanding_undropped(sample: Sample) -> list[Element]:
    """As `understanding`; no picture is ever dropped."""
    return [replace(element, droppable=False) for element in understanding(sample)]


def text_only(sample: Sample) -> Iterator[Element]:
    """Turns in order; nothing else."""
    for message in sample.messages:
        if text := without_marks(message.text):
            yield Element("human" if message.role == "human" else "gpt", text)


def text_to_image(sample: Sample) -> Iterator[Element]:
    """What is asked for, which may be dropped, what is answered, and the outputs; without outputs the inputs are drawn."""
    for text in map(without_marks, sample.texts("human")):
        if text:
            yield Element("human", text, droppable=True)
    for text in map(without_marks, sample.texts("gpt")):
        if text:
            yield Element("gpt", text)
    first = len(sample.inputs) if sample.outputs else 0
    yield from (Element("target", place=place) for place in range(first, len(sample.pictures)))


def caption_to_image(sample: Sample) -> list[Element]:
    """As `text_to_image`; no text is learned."""
    return [element for element in text_to_image(sample) if element.kind != "gpt"]


def chained_edit(sample: Sample) -> Iterator[Element]:
    """Pictures, then instructions and what each makes of them; what is made in between is the condition of what follows.

    Raises:
        ValueError: not as many instructions as pictures to draw.
    """
    instructions = [text for text in map(without_marks, sample.texts("human")) if text]
    if len(instructions) != len(sample.outputs):
        raise ValueError(f"{len(instructions)} instructions for {len(sample.outputs)} pictures of output_img")
    for place in range(len(sample.inputs)):
        yield from _condition(place, droppable=True)
    for step, text in enumerate(instructions):
        place = len(sample.inputs) + step
        yield Element("human", text, droppable=True)
        yield Element("target", place=place)
        if step + 1 < len(instructions):
            yield from _condition(place, droppable=True)


def edit(sample: Sample) -> Iterator[Element]:
    """A picture, the last instruction, the last answer, and the picture to draw.

    Raises:
        ValueError: no pair of pictures, or fewer than two turns.
    """
    human, gpt = _pair(sample)
    yield from _condition(0)
    yield Element("human", human)
    if gpt:
        yield Element("gpt", gpt)
    yield Element("target", place=1)


def counterfactual(sample: Sample) -> Iterator[Element]:
    """A picture, the last instruction, the picture to draw, and then the last answer, which explains it.

    Raises:
        ValueError: no pair of pictures, or fewer than two turns.
    """
    human, gpt = _pair(sample)
    yield from _condition(0)
    yield Element("human", human)
    yield Element("target", place=1)
    if gpt:
        yield Element("gpt", gpt)


def reconstruction(sample: Sample) -> Iterator[Element]:
    """As `understanding_undropped`, and then every picture is drawn again."""
    last = max(place for place, message in enumerate(sample.messages) if message.role == "human")
    asked = sample.messages[last]
    turns = list(sample.messages)
    turns[last] = replace(asked, text=f"{asked.text.rstrip()} {REDRAW}")
    yield from understanding_undropped(replace(sample, messages=tuple(turns)))
    yield from (Element("target", place=place) for place in range(len(sample.inputs)))


def conditioned_reconstruction(sample: Sample) -> Iterator[Element]:
    """As `reconstruction`, with the pictures given as the autoencoder sees them, too."""
    for element in reconstruction(sample):
        if element.kind == "vit":
            yield Element("vae", place=element.place)
        yield element


def by_task(sample: Sample) -> Iterator[Element]:
    """The plan that fits the line's main_task_type; ``<image>`` in an answer says where a picture is drawn."""
    plans: dict[str, Plan] = {
        "text_only": text_only,
        "image_understanding": understanding,
        "image_generation": text_to_image,
        "counterfactual_generation": counterfactual,
    }
    if sample.task in plans:
        yield from plans[sample.task](sample)
        return
    inputs, outputs = iter(range(len(sample.inputs))), iter(range(len(sample.inputs), len(sample.pictures)))
    for message in sample.messages:
        if message.role == "human":
            for element in _interleaved(message.text, inputs):
                yield from _condition(element.place) if element.kind == "vit" else [element]
        else:
            for number, part in enumerate(message.text.split(IMAGE)):
                if number:
                    yield Element("target", place=next(outputs))
                if part.strip():
                    yield Element("gpt", part.strip())
    yield from (Element("target", place=place) for place in outputs)


def _interleaved(text: str, places: Iterator[int], droppable: bool = False) -> Iterator[Element]:
    for number, part in enumerate(text.split(IMAGE)):
        if number:
            yield Element("vit", place=next(places), droppable=droppable)
        if part.strip():
            yield Element("human", part.strip())


def _condition(place: int, droppable: bool = False) -> list[Element]:
    return [Element("vae", place=place, droppable=droppable), Element("vit", place=place, droppable=droppable)]


def _pair(sample: Sample) -> tuple[str, str]:
    """The last instruction and the last answer about one picture to look at and one to draw."""
    if len(sample.inputs) != 1 or len(sample.outputs) != 1:
        raise ValueError(f"takes one input_img and one output_img, not {len(sample.inputs)} and {len(sample.outputs)}")
    if not sample.texts("human") or not sample.texts("gpt"):
        raise ValueError(f"fewer than 2 turns: {len(sample.messages)} message, and an instruction and an answer are needed")
    instructions = [text for text in map(without_marks, sample.texts("human")) if text]
    return instructions[-1], without_marks(sample.texts("gpt")[-1])
