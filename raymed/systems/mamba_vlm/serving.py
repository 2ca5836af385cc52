"""The registered report writer: an MLflow pyfunc. Pictures and questions in, texts out.

A language model that was not trained is no part of it: it is read from where it lay. MLflow loads this file as code, so
nothing is unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType

from raymed.data.image import ImageError, fit
from raymed.data.record import Image, Message, Record
from raymed.errors import UserError
from raymed.recipes.exported import open_model
from raymed.registry.serving import NETWORK
from raymed.storage.seal import check_seal
from raymed.systems.mamba_vlm.network import ReportWriter
from raymed.systems.mamba_vlm.radfm import CaptionSettings
from raymed.systems.mamba_vlm.recipe import ReportRecipe
from raymed.systems.mamba_vlm.settings import GenerationSettings
from raymed.systems.mamba_vlm.slices import read_pictures
from raymed.systems.mamba_vlm.texts import generate_texts

EXAMPLE = pd.DataFrame({"image": ["/data/case_0000.nii.gz"], "question": ["Describe this image."]})
SIGNATURE = ModelSignature(
    Schema([ColSpec(AnyType(), "image"), ColSpec(DataType.string, "question", required=False)]),
    Schema(
        [
            ColSpec(DataType.string, "question"),
            ColSpec(DataType.string, "text"),
            ColSpec(DataType.boolean, "abstained"),
            ColSpec(DataType.string, "note"),
        ]
    ),
)


class ReportModel(PythonModel):
    """A text for each picture; a machine's draft that no physician has read."""

    def load_context(self, context: PythonModelContext) -> None:
        """Raises: UserError: a file of the model is damaged, or the language model is not where it was."""
        folder = Path(context.artifacts[NETWORK])
        check_seal(folder.parent.parent)
        recipe, network = open_model(folder)
        assert isinstance(recipe, ReportRecipe) and isinstance(network, ReportWriter)
        recipe.reading.image.require_rule()  # the code that comes with the model may have lost to an installed raymed
        self.recipe, self.network = recipe, network

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """A row for each row of the input, in its order.

        Args:
            model_input: columns `image` and, where it is not always the usual one, `question`. An image is the path of a
                NIfTI volume, a folder with one DICOM series, a DICOM file or a picture, read as the training data were; or
                a slice as it is shown, uint8 [height, width].

        Raises:
            UserError: there is no column image, or no row.
        """
        if "image" not in model_input.columns or model_input.empty:
            raise UserError("the input needs a column image, and a row for each picture")
        questions = model_input["question"] if "question" in model_input.columns else [None] * len(model_input)
        answers = [
            self._answer(number, image, question)
            for number, (image, question) in enumerate(zip(model_input["image"], questions, strict=True))
        ]
        return pd.DataFrame(answers, columns=["question", "text", "abstained", "note"])

    def _answer(self, number: int, image: Any, asked: Any) -> tuple[str, str, bool, str]:
        """Question, text, whether there is none, and why the picture cannot be used."""
        question = asked.strip() if isinstance(asked, str) and asked.strip() else CaptionSettings().question
        try:
            images = self._images(image)
        except ImageError as error:
            return question, "", True, str(error)
        record = Record(str(number), "", "", 0, None, "", images, (Message("human", question), Message("gpt", "")))
        text = generate_texts(self.recipe, self.network, [record], GenerationSettings())[0]
        return question, text, not text, "" if text else "the network has nothing to say"

    def _images(self, image: Any) -> tuple[Image, ...]:
        """Raises: ImageError: it cannot be used."""
        reading = self.recipe.reading
        if isinstance(image, str | Path):
            return read_pictures(Path(image), None, reading).images
        try:
            picture = np.asarray(image)
        except ValueError as error:
            raise ImageError(f"an array of no shape: {error}") from error
        if picture.ndim == 3 and picture.shape[-1] == 1:
            picture = picture[..., 0]
        if picture.dtype == np.int64 and picture.size and picture.min() >= 0 and picture.max() <= 255:  # from JSON
            picture = picture.astype(np.uint8)
        if picture.ndim != 2 or picture.dtype != np.uint8 or not picture.size:
            shape = " x ".join(map(str, picture.shape))
            raise ImageError(f"an array {shape} of {picture.dtype}: give a slice as it is shown, uint8 [height, width]")
        if reading.slices.count != 1:
            raise ImageError(f"the model reads {reading.slices.count} slices of a volume: give the volume's path")
        return (Image("input", 0, fit(picture[..., None], reading.image)),)


mlflow.models.set_model(ReportModel())
