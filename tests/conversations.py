"""Records of conversations about pictures, as preparing writes them."""

from __future__ import annotations

import numpy as np

from raymed.data.record import Image, Message, Record

SIZE = 56


def conversation(
    id: str, grids: tuple[tuple[int, int], ...], answer: str = "a bright corner", source: str = "made", turns: int = 1
) -> Record:
    """A conversation about pictures of these grids (columns, rows), each with a thumbnail where it has several tiles."""
    draw = np.random.default_rng(sum(id.encode()))
    images = []
    for place, (columns, rows) in enumerate(grids):
        channels = (1, 3)[place % 2]

        def pixels(columns: int, rows: int, channels: int = channels) -> np.ndarray:
            return draw.integers(0, 256, (rows * SIZE, columns * SIZE, channels), dtype=np.uint8)

        images.append(Image("input", place, pixels(columns, rows)))
        if columns * rows > 1:
            images.append(Image("thumbnail", place, pixels(1, 1)))
    messages = [Message("system", "answer")]  # InternVL's own takes most of a short sequence of bytes
    for turn in range(turns):
        marks = "<image>\n" * len(grids) if turn == 0 else ""
        messages += [Message("human", f"{marks}what is in {id}?"), Message("gpt", f"{answer} {turn}")]
    return Record(id, id, id, 0, None, source, tuple(images), tuple(messages))


MIXED = (
    conversation("short", ((1, 1),), "yes"),
    conversation("tiled", ((2, 1),), "a long answer about a picture of several tiles", turns=2),
    conversation("text", (), "no picture", source="texts"),
    conversation("pair", ((1, 1), (1, 2)), "two pictures"),
)
