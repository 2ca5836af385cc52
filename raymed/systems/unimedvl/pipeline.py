"""A trained model that answers questions about pictures, and draws them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from raymed.data.image import ImageError, ImageSettings
from raymed.data.sources import read_whole
from raymed.errors import UserError
from raymed.models.precision import arithmetic
from raymed.recipes.exported import RECIPE_FILE
from raymed.registry.address import network_folder
from raymed.systems.unimedvl.checkpoint import load
from raymed.systems.unimedvl.checkpoint_config import sizes_of
from raymed.systems.unimedvl.context import Context, look_at, read_text, take_in
from raymed.systems.unimedvl.decoding import pieces, write
from raymed.systems.unimedvl.network import UniMedVL
from raymed.systems.unimedvl.resize import VAE, VIT, ResizeSettings, resized, target_size
from raymed.systems.unimedvl.sampler import Contexts, draw
from raymed.systems.unimedvl.settings import CHECKPOINT_FILES, UnifiedModelSettings
from raymed.systems.unimedvl.tokens import TextTokens
from raymed.systems.unimedvl.tool_settings import DrawingSettings, ReadingSettings, TextSettings

PLAN_FIRST = "Plan the picture first, inside <think> and </think>. Then draw it."
THINK = "Think it through first, inside <think> and </think>. Then give the answer behind </think>."
PLAN = "Look at the picture and plan how this is done step by step, and what must stay as it is: "
ANALYSIS = "Based on analysis: "
THOUGHT = "</think>"
WHITE = 255  # behind transparent pictures


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A trained model, ready to be asked. Get it with `Pipeline.open`.

    Attributes:
        network: in evaluation mode, on its device.
        tokens: its tokenizer.
        vit, vae: how large it sees pictures.
        image: how it reads them from files: the window of CT, and what 16-bit values mean.
        source: where it was read from.
    """

    network: UniMedVL
    tokens: TextTokens
    vit: ResizeSettings
    vae: ResizeSettings
    image: ImageSettings
    source: str

    @classmethod
    def open(
        cls,
        model: str,
        tracking: str = "",
        weights: Literal["ema", "model"] = "ema",
        reading: ReadingSettings | None = None,
    ) -> Pipeline:
        """The model at an address: models:/NAME@ALIAS, runs:/RUN_ID, a checkpoint that was trained here, or a folder of
        released weights, by its path or by its name under RAYMED_MODELS.

        Args:
            tracking: MLflow's address, for the first two.
            weights: the averaged ones, or those that were trained.
            reading: on what it runs, and how it sees pictures.

        Raises:
            UserError: there is no such model or GPU, or it is not complete.
        """
        reading = reading or ReadingSettings()
        device = _device(reading)
        folder = network_folder(model, tracking, CHECKPOINT_FILES)
        settings = UnifiedModelSettings(path=str(folder), weights=weights)
        network = load(folder, sizes_of(folder, weights), settings)
        network = network.to(device, torch.bfloat16 if arithmetic("auto", device) == "bf16" else torch.float32)
        vit, vae, image = _pictures(folder)
        changed = {name: value for name in ("window", "sixteen_bit", "exif") if (value := getattr(reading, name))}
        return cls(
            network.eval(),
            TextTokens.read(folder),
            _of_size(vit, reading.vit_transform_size),
            _of_size(vae, reading.vae_transform_size),
            ImageSettings.from_dict(asdict(image) | changed),
            model,
        )

    def stream(
        self, pictures: Sequence[Image.Image], prompt: str, settings: TextSettings, seed: int = 0, system: str = ""
    ) -> Iterator[str]:
        """The answer to a question about pictures, piece by piece.

        Args:
            seed: of the draws; 0 draws anew each time.
            system: what is said before the pictures.
        """
        context = self._told(Context.empty(self.network), system)
        for picture in pictures:
            context = look_at(self.network, context, self.tokens, _tensor(resized(picture, self.vit)))
        context = self._told(context, prompt)
        yield from pieces(write(self.network, context, self.tokens, settings, generator(seed)), self.tokens)

    def answer(
        self, pictures: Sequence[Image.Image], prompt: str, settings: TextSettings, seed: int = 0, system: str = ""
    ) -> str:
        """As `stream`, in one piece."""
        return "".join(self.stream(pictures, prompt, settings, seed, system)).strip()

    def prepare_instruction(
        self, picture: Image.Image, instruction: str, settings: TextSettings, seed: int = 0, thinking: bool = False
    ) -> str:
        """An instruction with what the model says of the picture before it draws.

        Args:
            thinking: let it plan the edit, in place of answering the instruction.
        """
        if not thinking:
            said = self.answer([picture], instruction, settings, seed)
            return f"{instruction}\n\n{said}" if said else instruction
        plan = self.answer([picture], PLAN + instruction, settings, seed, THINK).rpartition(THOUGHT)[2].strip()
        return f"{instruction}\n\n{ANALYSIS}{plan}" if plan else instruction

    def plan(self, pictures: Sequence[Image.Image], instruction: str, settings: TextSettings, seed: int = 0) -> str:
        """What the model plans before it draws, told to plan first; `draw` goes on from it."""
        _, before = self._before(pictures, PLAN_FIRST)
        context = self._told(before, instruction)
        return "".join(pieces(write(self.network, context, self.tokens, settings, generator(seed)), self.tokens)).strip()

    def draw(
        self,
        pictures: Sequence[Image.Image],
        instruction: str,
        settings: DrawingSettings,
        seed: int = 0,
        progress: Callable[[int, int], None] = lambda step, steps: None,
        plan: str = "",
        shape: tuple[int, int] | None = None,
    ) -> Image.Image:
        """A picture drawn from pictures and an instruction.

        Args:
            progress: told of each step done, and of how many there are.
            plan: what `plan` wrote.
            shape: its height and width in pixels (default: those of the first picture, by the autoencoder's rule).

        Raises:
            UserError: it cannot be of that shape.
        """
        latents, rows, columns = self.draw_latents(pictures, instruction, settings, seed, progress, plan, shape)
        pixels = self.network.autoencoder.decode(latents, rows, columns)
        return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())

    def draw_latents(
        self,
        pictures: Sequence[Image.Image],
        instruction: str,
        settings: DrawingSettings,
        seed: int = 0,
        progress: Callable[[int, int], None] = lambda step, steps: None,
        plan: str = "",
        shape: tuple[int, int] | None = None,
    ) -> tuple[Tensor, int, int]:
        """The latent tokens of the same picture, float32 [rows * columns, width], with rows and columns."""
        network, tokens = self.network, self.tokens
        alone, before = self._before(pictures, PLAN_FIRST if plan else "")
        full = self._told(self._told(before, instruction), plan)
        contexts = Contexts(full, before, self._told(alone, instruction))
        rows, columns = self._grid(pictures, shape)
        noise = torch.randn(rows * columns, network.sizes.latent_width, generator=generator(seed))
        return draw(network, contexts, tokens, rows, columns, settings, noise, progress), rows, columns

    def _before(self, pictures: Sequence[Image.Image], system: str) -> tuple[Context, Context]:
        """What is read before an instruction to draw: without pictures, and with them, as both networks see them."""
        alone = before = self._told(Context.empty(self.network), system)
        for picture in pictures:
            before = take_in(self.network, before, self.tokens, _tensor(resized(picture, self.vae)))
            before = look_at(self.network, before, self.tokens, _tensor(resized(picture, self.vit)))
        return alone, before

    def _grid(self, pictures: Sequence[Image.Image], shape: tuple[int, int] | None) -> tuple[int, int]:
        """Rows and columns of latent tokens of what is drawn."""
        stride, most = self.vae.image_stride, self.network.sizes.latent_side
        if shape is not None:
            if any(side % stride or not 1 <= side // stride <= most for side in shape):
                raise UserError(f"height and width are {list(shape)}: multiples of {stride} pixels, {most * stride} at most")
            return shape[0] // stride, shape[1] // stride
        side = min(self.vae.max_image_size, most * stride)
        width, height = target_size(*pictures[0].size, self.vae) if pictures else (side, side)
        return height // stride, width // stride

    def open_picture(self, path: str | Path | Image.Image) -> Image.Image:
        """A picture or DICOM file, read as training data are, on white; a picture that is open already is taken as it is.

        Raises:
            UserError: there is no such picture, it cannot be read, or it does not say how it is shown: 16-bit values of
                which the settings say nothing, a rotation that is asked for in EXIF, unless they apply it.
        """
        if isinstance(path, Image.Image):
            if path.mode.startswith(("I", "F")):
                raise UserError(
                    f"a picture of mode {path.mode}: its values do not say what is black or white. Convert it to 8 bits, or "
                    "give its file's path, and say what they mean by sixteen_bit"
                )
            return path
        try:
            pixels = read_whole(Path(path), self.image, WHITE)
        except ImageError as error:
            raise UserError(f"the picture {path} cannot be read: {error}") from error
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)

    def _told(self, context: Context, text: str) -> Context:
        if not text:
            return context
        tokens = self.tokens
        return read_text(self.network, context, [tokens.start, *tokens.ids(text), tokens.end])[0]


def generator(seed: int) -> torch.Generator:
    """Draws that follow from a seed; from the clock where it is 0."""
    return torch.Generator().manual_seed(seed or time.time_ns() % 2**63)


def _device(reading: ReadingSettings) -> torch.device:
    """The GPU that is asked for, with no more of its memory; the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if reading.gpu >= torch.cuda.device_count():
        raise UserError(f"there is no GPU {reading.gpu}: this machine has {torch.cuda.device_count()}, counted from 0")
    device = torch.device("cuda", reading.gpu)
    if reading.memory is not None:
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, reading.memory / whole), device)
    return device


def _of_size(settings: ResizeSettings, sizes: tuple[int, int, int] | None) -> ResizeSettings:
    """Raises: UserError: the model's tokens are of another size."""
    if sizes is None:
        return settings
    longest, shortest, stride = sizes
    if stride != settings.image_stride:
        raise UserError(f"a token of this model is {settings.image_stride} pixels wide, not {stride}")
    return replace(settings, max_image_size=longest, min_image_size=shortest)


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(pixels))


def _pictures(folder: Path) -> tuple[ResizeSettings, ResizeSettings, ImageSettings]:
    """As the model was trained; released folders do not say, and are asked as the guide does."""
    if not (folder / RECIPE_FILE).is_file():
        return VIT, VAE, ImageSettings()
    settings = json.loads((folder / RECIPE_FILE).read_text("utf-8"))
    image = ImageSettings.from_dict(settings["image"]) if "image" in settings else ImageSettings()
    return ResizeSettings(**settings["vit"]), ResizeSettings(**settings["vae"]), image
