"""Three records as prepared data hold them: a question about a picture, an edit, and text alone."""

import numpy as np

from raymed.data.record import Image, Message, Record

SEEN, TAKEN, TARGET = (np.random.default_rng(seed).integers(0, 256, (56, 56, 3), np.uint8) for seed in range(3))


def record(name: str, *elements: tuple[str, str], pictures: tuple[Image, ...] = ()) -> Record:
    return Record(name, name, name, 0, None, "set", pictures, tuple(Message(*element) for element in elements))


QUESTION = record(
    "question",
    ("vit?", "0"),
    ("human", "Which lung is affected?"),
    ("gpt", "Left."),
    pictures=(Image("input", 0, SEEN),),
)
EDIT = record(
    "edit",
    ("vae?", "0"),
    ("vit?", "0"),
    ("human?", "Remove it."),
    ("gpt", "Done."),
    ("target", "1"),
    pictures=(Image("input", 0, SEEN), Image("output", 0, TAKEN[:16, :24]), Image("output", 1, TARGET[:32, :32])),
)
TEXT = record("text", ("human", "What is typical?"), ("gpt", "Halos."))
DRAWING = record("draw", ("human", "A lung."), ("target", "0"), pictures=(Image("output", 0, TARGET[:32, :32]),))
