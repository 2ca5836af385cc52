"""A trained CLIP classifier, from wherever it is kept, asked about its own classes or others."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raymed.data.image import ImageSettings
from raymed.data.labels import LabelTable
from raymed.data.plan import SliceSettings
from raymed.errors import UserError
from raymed.evaluation.calibration import Temperature
from raymed.evaluation.predict import Inference, Model
from raymed.registry.address import resolve_model
from raymed.storage.seal import check_seal
from raymed.systems.clip import checkpoint
from raymed.systems.clip.recipe import ClipRecipe
from raymed.tracking.tracker import Tracker


@dataclass(frozen=True)
class Classifier:
    """A classifier to be opened.

    Attributes:
        path: an exported network, or a ``.pth`` file.
        asked: the recipe, with the texts that it is asked about.
        inference: how pictures are treated, and what comes out.
    """

    path: Path
    asked: ClipRecipe
    inference: Inference

    def open(self) -> Model:
        """The network, ready to predict.

        Raises:
            UserError: its files are damaged or not complete, or it cannot take the texts.
        """
        if self.path.is_dir():
            check_seal(self.path)
            return self.asked, self.asked.load(self.path)
        content = checkpoint.read(self.path)
        recipe = ClipRecipe.from_settings(content["recipe"])
        with tempfile.TemporaryDirectory() as temporary:  # exported and loaded again, for the texts that are asked about
            checkpoint.export(self.path, content, recipe, Path(temporary))
            return self.asked, self.asked.load(Path(temporary))


def open_classifier(uri: str, tracker: Tracker, texts: Mapping[str, str | Sequence[str]] | None = None) -> Classifier:
    """The classifier at a ``.pth`` file, an exported folder, or an address that `resolve_model` knows.

    Args:
        texts: other classes, by name, than it was trained on. Its temperature was fitted on its own, and is not used then.

    Raises:
        UserError: there is no such model, it is of another system, or the texts cannot be used.
    """
    inference, image = None, None
    if uri.endswith(".pth"):
        path = Path(uri).expanduser()
        content = checkpoint.read(path)
        if "normalisation" not in content:
            raise UserError(
                f"{path} is of an earlier raymed and does not say how its pictures were treated: train on from it "
                "(--resume-from), which writes a new file"
            )
        recipe = ClipRecipe.from_settings(content["recipe"])
        image = ImageSettings.from_dict(content["config"]["image"])
    else:
        resolved = resolve_model(uri, tracker)
        path, inference = resolved.network, resolved.inference
        recipe = ClipRecipe.read(path)
    if inference is None:
        inference = Inference(
            name=uri,
            labels=LabelTable.of(recipe.names),
            image=image or ImageSettings(size=recipe.prepared_size),
            slices=SliceSettings(choice="all"),
            temperature=Temperature(),
            data="",
        )
    asked = recipe
    if texts is not None:
        names = sorted(texts)
        prompts = [[text] if isinstance(text, str) else list(text) for text in (texts[name] for name in names)]
        asked = recipe.with_texts(names, prompts)
        inference = replace(inference, labels=LabelTable.of(names), temperature=Temperature())
    return Classifier(path, asked, inference)
