"""A lung classifier that was not trained here: a plain InternVL folder, asked the guide's question about each slice."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raymed.data.image import ImageSettings
from raymed.data.labels import LabelTable
from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.evaluation.calibration import Temperature
from raymed.evaluation.predict import Inference, Model
from raymed.models.classifiers import CONFIG, family_of
from raymed.models.internvl_weights import read_config, side
from raymed.models.model_folders import MODEL_FILES, find_model
from raymed.models.settings import ModelSettings
from raymed.recipes.exported import RECIPE_FILE
from raymed.registry.address import WHO_IS_UNKNOWN, Resolved, resolve_model
from raymed.registry.candidate import Candidate
from raymed.registry.model_card import unknown_patients
from raymed.storage.folder import Folder
from raymed.storage.seal import SEAL, digest_of_file, seal
from raymed.systems.lung.recipe import LungRecipe
from raymed.tracking.tracker import Tracker
from raymed.training.upload import upload


@dataclass(frozen=True)
class ElsewhereTrained:
    """An InternVL of whose training nothing is known but its weights, asked like a model that was trained here.

    Attributes:
        name: what to call it.
        network: its folder.
        recipe: the question that it is asked: the label table's codes are the choices.
        slices: which slices of a patient are looked at.
    """

    name: str
    network: Path
    recipe: LungRecipe
    slices: SliceSettings
    inference = None

    def open(self) -> Model:
        """The recipe and the network, ready to predict."""
        return self.recipe, self.recipe.build().eval()

    def notes(self, prepared: Prepared, patients: np.ndarray) -> list[str]:
        """What a person should know before judging it on these data."""
        return [*unknown_patients(prepared), self.asked, WHO_IS_UNKNOWN.format(unit=prepared.manifest.unit)]

    def predicting(self, labels: LabelTable) -> Inference:
        """How it is asked about people's own pictures."""
        return Inference(self.name, labels, ImageSettings(size=self.recipe.size), self.slices, Temperature(), "")

    @property
    def asked(self) -> str:
        """How it is asked, which nothing in its folder says."""
        choices = ", ".join(map(" ".join, zip(self.recipe.codes, self.recipe.names, strict=True)))
        codes = "|".join(self.recipe.codes)
        return f"{self.name} was trained elsewhere: asked <cls>: {codes}. ({choices}), temperature 1"

    @property
    def treated(self) -> str:
        """How people's pictures are brought to it."""
        image = self.predicting(LabelTable(())).image
        return f"{self.slices.told}, {image.size} pixels, {image.resize}; scans in the {image.window} window"


def register_run(model: ElsewhereTrained, prepared: Prepared, fold: int | None, storage: Folder, tracker: Tracker) -> str:
    """A run in MLflow that trained nothing and leaves the network as its checkpoint, so that it can be promoted like others;
    the same one when it is asked for again. Returns the run's id.

    Args:
        fold: that is validated on; None for the stored split.
        storage: where the checkpoint is kept.

    Raises:
        UserError: the folder's weights do not fit.
    """
    recipe, module = model.open()
    with tempfile.TemporaryDirectory() as temporary:
        network = Path(temporary) / "model"
        recipe.export(module, network)
        seal(network)
        digest = digest_of_file(network / SEAL)[:8]
        name = f"imported-{model.network.name}-{digest}"
        folder = storage.child(name)
        if not folder.exists(f"model/{SEAL}"):
            folder.make()
            upload(network, folder, "model")
    run = tracker.run(f"{name}/{prepared.digest[:8]}-{fold}", name)
    candidate = Candidate(run, folder.uri, prepared.folder.uri, fold, model.slices, 0, prepared.digest, trained_here=False)
    tracker.tags(run, candidate.tags())
    tracker.finish(run, "FINISHED")
    return run


def open_lung(uri: str, tracking: str, labels: LabelTable, size: int | None = None) -> Resolved | ElsewhereTrained:
    """The classifier that a URI or a folder names: as for `resolve_model`, or a plain InternVL folder, by its path or by its
    name under RAYMED_MODELS.

    Args:
        tracking: MLflow's address.
        labels: what a plain InternVL is asked to choose from.
        size: side of the pictures that it is asked about; None for what it was made for.

    Raises:
        UserError: there is no such model, or it cannot take these classes or pictures.
    """
    folder = plain_internvl(uri)
    if folder is None:
        return resolve_model(uri, Tracker.open(tracking))
    vision: Any = read_config(folder).vision_config
    model = ModelSettings(path=str(folder), attention="sdpa")  # in float32, which flash-attn does not take
    recipe = LungRecipe.for_data(labels, size or side(vision.image_size), model)
    return ElsewhereTrained(uri, folder, recipe, SliceSettings())


def plain_internvl(uri: str) -> Path | None:
    """The folder of an InternVL that no recipe of raymed describes; None where a URI names something else."""
    if uri.startswith(("models:/", "runs:/")):
        return None
    try:
        folder = find_model(uri, MODEL_FILES)
    except UserError:
        return None  # the registry says what can be given
    described = (folder / "MLmodel", folder / RECIPE_FILE, folder / "model" / RECIPE_FILE)
    if not (folder / CONFIG).is_file() or any(file.is_file() for file in described):
        return None
    return folder if family_of(ModelSettings(path=str(folder))) == "internvl" else None
