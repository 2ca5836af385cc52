"""The registered model: both tools as an MLflow pyfunc that needs nothing but its own folder.

In: one row per request, a picture and what is asked of it. Out: one row each, an answer or a drawn picture. MLflow loads
this file as code, so nothing is unpickled.
"""

from __future__ import annotations

import base64
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType
from PIL import Image

from raymed.errors import UserError
from raymed.registry.serving import NETWORK
from raymed.storage.seal import check_seal
from raymed.systems.unimedvl.pipeline import Pipeline
from raymed.systems.unimedvl.synthetic import marked, png_bytes
from raymed.systems.unimedvl.tool_settings import DrawingSettings, TextSettings

ANSWER, DRAW = "answer", "draw"
EXAMPLE = pd.DataFrame({"image": ["/data/chest.png"], "task": [ANSWER], "prompt": ["Which lung is affected?"]})
TEXT, DRAWING = TextSettings(), DrawingSettings()
PARAMETERS: dict[str, str | float | int | bool] = {  # of a request, with the guide's defaults
    "temperature": TEXT.temperature,
    "max_new_tokens": TEXT.max_new_tokens,
    "do_sample": TEXT.do_sample,
    "seed": 42,
    "cfg_text_scale": DRAWING.cfg_text_scale,
    "cfg_img_scale": DRAWING.cfg_img_scale,
    "num_timesteps": DRAWING.num_timesteps,
    "timestep_shift": DRAWING.timestep_shift,
    "cfg_renorm_type": DRAWING.cfg_renorm_type,
    "cfg_renorm_min": DRAWING.cfg_renorm_min,
}


class ReadingAndDrawing(PythonModel):
    """Pictures and questions in, answers out; pictures and instructions in, marked pictures out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Raises: UserError: a file of the model is damaged."""
        network = Path(context.artifacts[NETWORK])
        check_seal(network.parent.parent)
        self.pipeline = Pipeline.open(str(network))
        self.pipeline.image.require_rule()  # the code that comes with the model may have lost to an installed raymed

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row per request, in their order.

        Args:
            model_input: columns `image`, a picture or DICOM file's path or uint8 [h, w] or [h, w, 3]; `task`, answer or
                draw; `prompt`, the question or the instruction.
            params: of `PARAMETERS`.

        Returns:
            `answer`, empty of drawings; `picture`, base64 of a PNG that is marked and has its settings in it, empty of
            answers; `note`, why there is neither.

        Raises:
            UserError: a column or a task is not there, or a parameter makes no sense.
        """
        if missing := {"image", "task", "prompt"} - set(model_input.columns):
            raise UserError(f"the input has no column {', '.join(sorted(missing))}; give image, task and prompt")
        if unknown := set(model_input["task"]) - {ANSWER, DRAW}:
            raise UserError(f"task is {', '.join(sorted(map(repr, unknown)))}: give {ANSWER} or {DRAW}")
        chosen = PARAMETERS | (params or {})
        text = TextSettings(**_own(TextSettings, chosen))
        drawing = DrawingSettings(**_own(DrawingSettings, chosen))
        rows = [
            self._row(row["image"], row["task"], row["prompt"], text, drawing, int(chosen["seed"]))
            for row in model_input.to_dict("records")
        ]
        return pd.DataFrame(rows, columns=["answer", "picture", "note"])

    def _row(
        self, image: Any, task: str, prompt: str, text: TextSettings, drawing: DrawingSettings, seed: int
    ) -> tuple[str, str, str]:
        try:
            picture = self.pipeline.open_picture(_picture(image))
        except UserError as error:
            return "", "", str(error)
        if task == ANSWER:
            return self.pipeline.answer([picture], prompt, text, seed), "", ""
        drawn = self.pipeline.draw([picture], prompt, drawing, seed)
        described = {"instruction": prompt, "seed": seed, **asdict(drawing)}
        return "", base64.b64encode(png_bytes(marked(drawn), described)).decode(), ""


def _own(kind: type, chosen: dict[str, Any]) -> dict[str, Any]:
    """Those of the parameters that are fields of a class of settings."""
    return {each.name: chosen[each.name] for each in fields(kind) if each.name in chosen}


def _picture(image: Any) -> str | Image.Image:
    """A path, or an array's picture.

    Raises:
        UserError: the array is no picture.
    """
    if isinstance(image, str | Path):
        return str(image)
    try:
        pixels = np.asarray(image)
    except ValueError as error:
        raise UserError("the picture's rows are of different lengths") from error
    if pixels.dtype == np.int64 and pixels.size and pixels.min() >= 0 and pixels.max() <= 255:  # from JSON
        pixels = pixels.astype(np.uint8)
    if (
        pixels.dtype != np.uint8
        or pixels.ndim not in (2, 3)
        or (pixels.ndim == 3 and pixels.shape[2] != 3)
        or not pixels.size
    ):
        raise UserError(f"an array of {pixels.dtype} {list(pixels.shape)} is no picture: give uint8 [h, w] or [h, w, 3]")
    return Image.fromarray(pixels)


def signature() -> ModelSignature:
    """What goes in and comes out, in MLflow's terms."""
    text, kinds = DataType.string, {bool: DataType.boolean, int: DataType.long, float: DataType.double, str: DataType.string}
    inputs = Schema([ColSpec(AnyType(), "image"), ColSpec(text, "task"), ColSpec(text, "prompt")])
    outputs = Schema([ColSpec(text, name) for name in ("answer", "picture", "note")])
    params = ParamSchema([ParamSpec(name, kinds[type(value)], value) for name, value in PARAMETERS.items()])
    return ModelSignature(inputs, outputs, params)


mlflow.models.set_model(ReadingAndDrawing())
