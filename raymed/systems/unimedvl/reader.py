"""What a network answers and draws of prepared records, element by element, as it was trained to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raymed.data.record import Record
from raymed.systems.unimedvl.context import Context, look_at, read_text, take_in
from raymed.systems.unimedvl.decoding import write
from raymed.systems.unimedvl.network import UniMedVL
from raymed.systems.unimedvl.sampler import Contexts, draw
from raymed.systems.unimedvl.sequence import Element, from_messages
from raymed.systems.unimedvl.tokens import TextTokens
from raymed.systems.unimedvl.tool_settings import DrawingSettings, TextSettings

Shown = Mapping[tuple[str, int], np.ndarray]
"""Pictures by role and place, uint8 [height, width, 1 or 3]."""


def pictures_of(record: Record) -> dict[tuple[str, int], np.ndarray]:
    """A record's pictures: role input as the ViT sees them, output as the autoencoder does."""
    return {(image.role, image.place): image.pixels for image in record.images}


@dataclass(frozen=True, eq=False)
class Reader:
    """A network with its tokens, and how it writes and draws; chance follows from the record and the seed."""

    network: UniMedVL
    tokens: TextTokens
    writing: TextSettings
    drawing: DrawingSettings
    seed: int = 0

    def answer(self, record: Record, shown: Shown | None = None) -> str:
        """The first answer of a record's sequence, after all that stands before it.

        Args:
            shown: pictures in place of the record's own.
        """
        elements = from_messages(record.messages)
        first = next(place for place, element in enumerate(elements) if element.kind == "gpt")
        context = self._read(elements[:first], pictures_of(record) if shown is None else shown)
        return self.tokens.text(self._write(context, record.id))

    def paint(self, record: Record) -> np.ndarray:
        """The last picture to draw of a record's sequence, after all that stands before it: uint8 [height, width, 3].

        Answers that stand before it are the network's own; they guide as part of all that was read, as the texts that were
        given do alone.
        """
        elements, pictures = from_messages(record.messages), pictures_of(record)
        last = max(place for place, element in enumerate(elements) if element.kind == "target")
        before, target = elements[:last], elements[last]
        texts = [element for element in before if element.kind == "human"]
        last_text = max((place for place, element in enumerate(before) if element.kind == "human"), default=len(before))
        contexts = Contexts(
            self._read(before, pictures, record.id),
            self._read((element for element in before[:last_text] if element.kind != "gpt"), pictures),
            self._read(texts, pictures),
        )
        height, width, _ = pictures["output", target.place].shape
        stride = self.network.sizes.grids.latent_stride
        rows, columns = height // stride, width // stride
        noise = torch.randn(rows * columns, self.network.sizes.latent_width, generator=self._draws(record.id))
        latents = draw(self.network, contexts, self.tokens, rows, columns, self.drawing, noise)
        return self.network.autoencoder.decode(latents, rows, columns).permute(1, 2, 0).cpu().numpy()

    def latent(self, picture: np.ndarray) -> np.ndarray:
        """The mean latent token of a picture: what sets of pictures are compared by, float64 [width]."""
        pixels = _tensor(picture).permute(2, 0, 1).contiguous().to(self.network.device)
        return self.network.autoencoder.encode(pixels)[0].mean(0).double().cpu().numpy()

    def _read(self, elements: Iterable[Element], pictures: Shown, name: str = "") -> Context:
        """Read elements; a target is seen by nothing after it. With a record's name, answers are written, not read."""
        context = Context.empty(self.network)
        for element in elements:
            if element.kind == "vit":
                context = look_at(self.network, context, self.tokens, _tensor(pictures["input", element.place]))
            elif element.kind == "vae":
                context = take_in(self.network, context, self.tokens, _tensor(pictures["output", element.place]))
            elif element.is_text:
                own = element.kind == "gpt" and name
                ids = self._write(context, name) if own else self.tokens.ids(element.text)
                context, _ = read_text(self.network, context, [self.tokens.start, *ids, self.tokens.end])
        return context

    def _write(self, context: Context, name: str) -> Sequence[int]:
        return list(write(self.network, context, self.tokens, self.writing, self._draws(name)))

    def _draws(self, name: str) -> torch.Generator:
        """A generator of the record's own, whatever came before it."""
        digest = hashlib.blake2b(f"{self.seed}\0{name}".encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def _tensor(picture: np.ndarray) -> torch.Tensor:
    """uint8 [height, width, 3]."""
    colour = np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture
    return torch.from_numpy(np.array(colour))
