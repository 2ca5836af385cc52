"""Which model a person means: an address in MLflow, a run, or a folder, brought to this machine's disk and opened."""

from __future__ import annotations

import atexit
import json
import re
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException

from raymed.data.acquisition import Acquisition
from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.evaluation.predict import Inference, Model
from raymed.models.model_folders import MODEL_FILES, find_model
from raymed.models.vision_tower import VisionTower
from raymed.recipes.exported import RECIPE_FILE, open_model
from raymed.registry import serving
from raymed.registry.candidate import FOLDER, LEFT, Candidate
from raymed.registry.model_card import unknown_patients
from raymed.storage.folder import Folder
from raymed.storage.seal import check_seal
from raymed.tracking.tracker import Tracker
from raymed.training.checkpoint import PROGRESS, judged_slices

VERSION = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))")  # of a registered model
UNKNOWN = "RUN_ID"
OTHER_DATA = "other data than the model was trained on, and no id that it knows: other ids of the same {unit}s go unnoticed"
WHO_IS_UNKNOWN = "it is not noted who trained and chose this model: if these {unit}s did, the figures flatter it"


@dataclass(frozen=True)
class Resolved:
    """A model on the local disk.

    Attributes:
        name: what to call it.
        network: folder of the exported network.
        inference: temperature and picture settings; None for a bare checkpoint, which has neither.
        slices: which slices of a patient it was trained on, where that is known.
    """

    name: str
    network: Path
    inference: Inference | None
    slices: SliceSettings = field(default_factory=SliceSettings)

    def open(self) -> Model:
        """The recipe and the network, ready to predict. Raises: UserError: as `open_model`."""
        return open_model(self.network)

    def notes(self, prepared: Prepared, patients: np.ndarray) -> list[str]:
        """What a person should know before judging this model on patients of these data.

        Args:
            patients: their ids; repeats count once.

        Raises:
            UserError: the pictures or the classes are not those that the model was made for.
        """
        unit = prepared.manifest.unit
        if self.inference is None:
            recipe = json.loads((self.network / RECIPE_FILE).read_text("utf-8"))
            names = recipe.get("names", [])
            own, given = [names], [prepared.labels.names]
            if "codes" in recipe:
                own, given = [names, recipe["codes"]], [prepared.labels.names, prepared.labels.codes]
            if own != given:
                raise UserError(
                    f"{self.name} decides between {', '.join(names) or 'no classes'}, but {prepared.folder.uri} "
                    f"has {', '.join(prepared.labels.names) or 'none'}: prepare the data again with the model's "
                    "label table"
                )
            return [
                *unknown_patients(prepared),
                f"a bare checkpoint: temperature 1, {self.slices.told}",
                f"it is not noted which pictures it was trained on; these have {prepared.image.told}",
                WHO_IS_UNKNOWN.format(unit=unit),
            ]
        if self.inference.image != prepared.image:
            raise UserError(
                f"{self.name} looks at pictures with {self.inference.image.told}, but {prepared.folder.uri} was "
                f"prepared with {prepared.image.told}: prepare the data again with the model's settings"
            )
        own_labels, given_labels = self.inference.labels, prepared.labels
        if (own_labels.codes, own_labels.names) != (given_labels.codes, given_labels.names):
            raise UserError(
                f"{self.name} decides between {', '.join(self.inference.labels.names)}, but "
                f"{prepared.folder.uri} has {', '.join(prepared.labels.names)}: prepare the data again with "
                "the model's label table"
            )
        told = unknown_patients(prepared)
        told += self.inference.acquisition.unlike(Acquisition.of(prepared, prepared.rows_of(patients)))
        if self.inference.known is None:
            return [*told, WHO_IS_UNKNOWN.format(unit=unit)]
        notes = self.inference.known.notes(patients, unit)
        if self.inference.data != prepared.digest and not notes:
            notes = [OTHER_DATA.format(unit=unit)]
        return told + notes


def resolve_model(uri: str, tracker: Tracker) -> Resolved:
    """The model that a URI or a folder names: ``models:/raymed-lung@champion``, ``models:/raymed-lung/3``, ``runs:/RUN_ID``,
    a folder with a registered model, a checkpoint, or an exported network.

    Raises:
        UserError: there is no such model.
    """
    if uri.startswith("models:/"):
        return _opened(uri, _download(uri, tracker))
    if uri.startswith("runs:/"):
        run_id = uri.removeprefix("runs:/").split("/")[0]
        versions = tracker.client.search_model_versions(f"run_id = '{tracker.describe(run_id).id}'")
        if versions:
            newest = max(versions, key=lambda each: int(each.version))
            return resolve_model(f"models:/{newest.name}/{newest.version}", tracker)
        candidate = Candidate.of_run(tracker, run_id)
        return replace(_opened(uri, candidate.fetch(candidate.checkpoint, _scratch())), slices=candidate.slices)
    return _opened(uri, Path(uri).expanduser().absolute())


def open_tower(uri: str, tracking: str) -> VisionTower:
    """The ViT of the model that a URI or a folder names as for `network_folder`; or in a file of weights.

    Raises:
        UserError: there is none.
    """
    registered = uri.startswith(("models:/", "runs:/"))
    return VisionTower.read(network_folder(uri, tracking, MODEL_FILES), uri if registered else None)


def network_folder(uri: str, tracking: str, files: str) -> Path:
    """Where the network lies that a URI or a folder names as for `resolve_model`; or any model folder or file of weights, by
    its path or by its name under RAYMED_MODELS.

    Args:
        tracking: MLflow's address, for models:/ and runs:/.
        files: what such a folder holds, for the error.

    Raises:
        UserError: there is none.
    """
    if uri.startswith(("models:/", "runs:/")):
        return resolve_model(uri, Tracker.open(tracking)).network
    path = find_model(uri, files)
    known = [path / "MLmodel", path / RECIPE_FILE, path / "model" / RECIPE_FILE]
    return _opened(uri, path).network if any(file.is_file() for file in known) else path


def run_of(uri: str, tracker: Tracker) -> str:
    """The id of the run that a model is of, for jobs/promote.py to be given; ``RUN_ID`` where nobody knows it."""
    if uri.startswith("runs:/"):
        return uri.removeprefix("runs:/").split("/")[0]
    if named := VERSION.fullmatch(uri):
        name, alias, number = named.groups()
        client = tracker.client
        version = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
        return str(version.run_id or UNKNOWN)
    folder = Path(Folder.at(uri).path)
    for trial in (folder.parent, folder.parent.parent):  # of a checkpoint, or of the model in it
        found = [] if "'" in str(trial) else tracker.tagged(FOLDER, str(trial))  # MLflow knows no way to write one
        if there := [run.id for run in found if not run.is_deleted]:
            return there[0]
    return UNKNOWN


def _opened(uri: str, folder: Path) -> Resolved:
    if (folder / "MLmodel").is_file():
        check_seal(folder)
        artifacts = mlflow.models.Model.load(str(folder)).flavors["python_function"]["artifacts"]
        network = folder / artifacts[serving.NETWORK]["path"]
        if serving.INFERENCE not in artifacts:  # of a system that tells no classes apart
            return Resolved(uri, network, None)
        inference = Inference.read(folder / artifacts[serving.INFERENCE]["path"])
        return Resolved(inference.name, network, inference, inference.slices)
    for network in (folder / "model", folder):
        if (network / RECIPE_FILE).is_file():
            return Resolved(uri, network, None, judged_slices(Folder.at(network.parent)))
    if (folder / PROGRESS).is_file():
        raise UserError(f"the checkpoint {uri} {LEFT}")
    raise UserError(
        f"{uri} is not a model: there is neither MLmodel nor {RECIPE_FILE} in {folder}. Give "
        "models:/raymed-lung@champion, runs:/RUN_ID, or the folder of a checkpoint."
    )


def _download(uri: str, tracker: Tracker) -> Path:
    match = VERSION.fullmatch(uri)
    if not match:
        raise UserError(f"{uri!r} names no model version: give models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = match.groups()
    client = tracker.client
    try:
        number = number or client.get_model_version_by_alias(name, alias).version
        return _local(client.get_model_version_download_uri(name, number), tracker)
    except (MlflowException, OSError) as error:
        known = ", ".join(each.name for each in client.search_registered_models()) or "none"
        raise UserError(f"there is no {uri} at {tracker.uri} ({error}). Registered models: {known}.") from error


def _local(artifact_uri: str, tracker: Tracker) -> Path:
    """Where an artefact lies: in place on this machine's disk, else a copy."""
    if artifact_uri.startswith("file:"):
        return Path(mlflow.artifacts.download_artifacts(artifact_uri, tracking_uri=tracker.uri))
    return Path(mlflow.artifacts.download_artifacts(artifact_uri, dst_path=str(_scratch()), tracking_uri=tracker.uri))


def _scratch() -> Path:
    """A folder that lives as long as this process."""
    folder = tempfile.mkdtemp(prefix="raymed-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
