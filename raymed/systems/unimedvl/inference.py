"""The guide's two tools, for notebooks: `VQAInferencer` answers questions about a picture, `ImageGenerator` edits it.

from raymed.systems.unimedvl.inference import DEFAULT_CONFIG, ImageGenerator, VQAInferencer

inferencer = VQAInferencer(DEFAULT_CONFIG | {"model_path": "UniMedVL"})
inferencer.load_model()
result = inferencer.infer_single("chest.png", "Which lung is affected?", temperature=0.1)
print(result["answer"])
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from raymed.errors import UserError
from raymed.job.mistakes import did_you_mean
from raymed.systems.unimedvl.pipeline import Pipeline
from raymed.systems.unimedvl.tool_settings import DrawingSettings, ReadingSettings, TextSettings

log = logging.getLogger("raymed")

DEFAULT_CONFIG: dict[str, Any] = {
    "model_path": None,  # an address as for jobs/vqa.py
    "target_gpu_device": "0",  # number of the GPU; of several, "0,1", the first holds the model
    "max_mem_per_gpu": "40GiB",  # of a GPU's memory
    "temperature": 1.0,
    "max_new_tokens": 512,
    "do_sample": True,
    "seed": 42,  # 0 draws anew each time
    "use_model_checkpoint": False,  # the weights that were trained, in place of the averaged ones
    "vae_transform_size": None,  # longest side, shortest side, stride; None as the model was trained
    "vit_transform_size": None,
    "window": "",  # of CT, and what 16-bit values mean: as the model was trained
    "sixteen_bit": "",
    "exif": "",  # whether pictures are turned as their EXIF data ask: apply, or refuse
    "text_do_sample": False,  # of what the image tool writes before it draws
    "text_temperature": 0.3,
    "max_think_tokens": 800,
}
IGNORED = ("enable_cpu_loading", "enable_auto_bf16_conversion", "offload_folder")  # always so, or never needed


class Tool:
    """What the two tools share: a configuration, and a model that is loaded by it."""

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        """Args:
            config: keys of `DEFAULT_CONFIG`; what is left out is as there.

        Raises:
            UserError: a key is unknown, or there is no model_path.
        """
        given = dict(config or {})
        for key in IGNORED:
            if key in given:
                del given[key]
                log.info("%s: ignored; weights are read once, in bf16 where the GPU has it", key)
        for key in given.keys() - DEFAULT_CONFIG.keys():
            raise UserError(f"there is no {key!r} in the configuration{did_you_mean(key, DEFAULT_CONFIG)}")
        self.config = DEFAULT_CONFIG | given
        if not self.config["model_path"]:
            raise UserError("the configuration has no model_path: give the model's folder, or its address in MLflow")
        self._pipeline: Pipeline | None = None

    def load_model(self) -> None:
        """Read the model; before anything else is asked of it."""
        config = self.config
        weights = "model" if config["use_model_checkpoint"] else "ema"
        reading = ReadingSettings(**{each.name: config[each.name] for each in fields(ReadingSettings)})
        self._pipeline = Pipeline.open(config["model_path"], weights=weights, reading=reading)  # type: ignore[arg-type]

    @property
    def pipeline(self) -> Pipeline:
        """The loaded model.

        Raises:
            UserError: none was loaded.
        """
        if self._pipeline is None:
            raise UserError("no model is loaded: call load_model() first")
        return self._pipeline


class VQAInferencer(Tool):
    """Answers questions about a picture, and writes reports."""

    def infer_single(
        self,
        image_path: str | Path | Image.Image,
        prompt: str,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        show_image: bool = False,
    ) -> dict[str, Any]:
        """Ask one question; what is None is as in the configuration.

        Returns:
            answer, input_image, time (seconds), image_path, prompt, timestamp.
        """
        given: dict[str, Any] = {"temperature": temperature, "max_new_tokens": max_new_tokens, "do_sample": do_sample}
        settings = TextSettings(**{name: self.config[name] if value is None else value for name, value in given.items()})
        picture = self.pipeline.open_picture(image_path)
        if show_image:
            _show(picture)
        started = time.perf_counter()
        answer = self.pipeline.answer([picture], prompt, settings, self.config["seed"])
        seconds = time.perf_counter() - started
        print(f"{answer}\n({seconds:.1f} s)")
        return {
            "answer": answer,
            "input_image": picture,
            "time": seconds,
            "image_path": str(image_path),
            "prompt": prompt,
            "timestamp": datetime.now().astimezone().isoformat(timespec="seconds"),
        }


class ImageGenerator(Tool):
    """Edits a picture, or shows it in another stain or window."""

    def prepare_instruction(self, image: str | Path | Image.Image, instruction: str, use_thinking: bool = False) -> str:
        """The instruction with what the model says of the picture first; `infer_single` draws by it."""
        picture = self.pipeline.open_picture(image)
        return self.pipeline.prepare_instruction(picture, instruction, self._text, self.config["seed"], use_thinking)

    @property
    def _text(self) -> TextSettings:
        """How what is said before drawing is written."""
        config = self.config
        return TextSettings(config["text_temperature"], config["max_think_tokens"], config["text_do_sample"])

    def infer_single(
        self,
        image: str | Path | Image.Image,
        instruction: str,
        cfg_text_scale: float = 4.0,
        cfg_img_scale: float = 2.0,
        timestep_shift: float = 3.0,
        num_timesteps: int = 50,
        image_shapes: tuple[int, int] | None = None,
        think: bool = False,
        **others: Any,
    ) -> dict[str, Any]:
        """Draw one picture.

        Args:
            image_shapes: height and width of what is drawn (default: those of the picture, by the autoencoder's rule).
            think: let the model plan the picture before it draws.
            others: further fields of `DrawingSettings`.

        Returns:
            edited_image, input_image, instruction, plan (empty without `think`), seed, time (seconds).
        """
        settings = DrawingSettings(cfg_text_scale, cfg_img_scale, num_timesteps, timestep_shift, **others)
        picture, seed = self.pipeline.open_picture(image), self.config["seed"]
        started = time.perf_counter()
        plan = self.pipeline.plan([picture], instruction, self._text, seed) if think else ""
        drawn = self.pipeline.draw([picture], instruction, settings, seed, plan=plan, shape=image_shapes)
        return {
            "edited_image": drawn,
            "input_image": picture,
            "instruction": instruction,
            "plan": plan,
            "seed": seed,
            "time": time.perf_counter() - started,
        }


def _show(picture: Image.Image) -> None:
    """In the notebook, or in a window where there is none."""
    try:
        notebook = importlib.import_module("IPython.display")
    except ImportError:
        picture.show()
    else:
        notebook.display(picture)
