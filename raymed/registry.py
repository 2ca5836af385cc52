"""From a trial to a model that others can use: judged, calibrated, registered under an alias, with its card.

Whoever picks the trial, the search or a person in the MLflow UI, it goes through the same steps. Doing it again for the
same trial finds the version that is there.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

import raymed
from raymed import model_card, serving
from raymed.data.acquisition import Acquisition
from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.evaluation import figures
from raymed.evaluation.predict import Inference
from raymed.judgement import Candidate, Judgement, Refit, judge
from raymed.models.model_folders import MODEL_FILES, find_model
from raymed.models.vision_tower import VisionTower
from raymed.recipes import RECIPE_FILE, open_model
from raymed.seal import check_seal, seal
from raymed.tracking import USED, Tracker, is_permanent

log = logging.getLogger("raymed")

CHAMPION = "champion"
KEY = "raymed.key"
NEEDS = [  # what the served model imports
    *("torch", "transformers", "safetensors", "peft", "mlflow", "numpy", "pandas", "scipy", "pyarrow", "PyYAML"),
    *("pillow", "pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "nibabel"),
]


@dataclass(frozen=True, eq=False)
class Registered:
    """A model version.

    Attributes:
        name: of the registered model.
        version: its number.
        uri: what to give to --model: its alias or, without one, its number.
        judgement: how good it is.
    """

    name: str
    version: str
    uri: str
    judgement: Judgement


def judge_and_register(
    tracker: Tracker,
    candidate: Candidate,
    alias: str | None = None,
    refit: Refit | None = None,
    licence: str = "",
    micro_batch: int = 32,
    workers: int = 1,
    bootstrap: int = 1000,
    seen: str | None = None,
) -> Registered:
    """Judge a candidate, log its figures, register its network (or its refit's) and give it the alias.

    Args:
        alias: None for `champion`, and for none where a limit left patients out of training.
        seen: the version that the alias named before (empty: none): where it names another one by now, it stays so.

    Raises:
        UserError: the checkpoint or the data are not there any more, or leak.
    """
    prepared = candidate.open_data()
    with tempfile.TemporaryDirectory() as temporary:
        network = candidate.fetch(candidate.checkpoint, Path(temporary) / "judged" / "model")
        model = open_model(network)
        judgement = judge(candidate, model, prepared, micro_batch, workers, bootstrap)
        name = f"raymed-{model[0].name}"
        key = _key(candidate, refit, prepared)
        trained_on = refit.splits if refit is not None else ("train",) if candidate.fold is None else ("train", "val")
        inference = Inference(
            name=f"{name}-{key}",
            labels=prepared.labels,
            image=prepared.image,
            slices=candidate.slices,
            temperature=judgement.temperature,
            data=prepared.digest,
            trained_on=trained_on,
            acquisition=Acquisition.of(prepared, candidate.trained_rows(prepared, refit)),
        )
        text = model_card.write(inference, judgement, prepared, model[0].settings(), refit, licence)
        found = _version(tracker, name, key)
        if found is None:
            if refit is not None:
                network = candidate.fetch(refit.checkpoint, Path(temporary) / "refitted" / "model")
            _log(tracker, judgement, text)
            save(network, inference, Path(temporary) / "pyfunc")
            tracker.artifacts(candidate.run_id, Path(temporary) / "pyfunc", f"models/{key}")
            found = _create_version(tracker, name, key, candidate.run_id, _figures(judgement), text)
        elif licence:
            _renew_card(tracker, name, found, candidate.run_id, text)
    return Registered(name, found, _give_alias(tracker, candidate, name, found, alias, seen), judgement)


@dataclass(frozen=True)
class RegisteredNetwork:
    """A model version that was judged by its validation loss alone: how to ask for it, its number, and its card."""

    uri: str
    version: str
    card: str


def register_network(
    tracker: Tracker,
    candidate: Candidate,
    val_loss: float,
    found_by: str,
    alias: str | None = None,
    licence: str = "",
    seen: str | None = None,
) -> RegisteredNetwork:
    """Register a candidate's exported network as it is, for data without classes to judge patients by.

    Args:
        found_by: how it was chosen, a sentence for its card.
        alias: as for `judge_and_register`.
        seen: as for `judge_and_register`.

    Raises:
        UserError: the checkpoint is not there any more, or the data leak.
    """
    prepared = candidate.open_data()
    with tempfile.TemporaryDirectory() as temporary:
        network = candidate.fetch(candidate.checkpoint, Path(temporary) / "model")
        settings = json.loads((network / RECIPE_FILE).read_text("utf-8"))
        name, key = f"raymed-{settings['recipe']}", _key(candidate, None, prepared)
        used = tracker.describe(candidate.run_id).tags.get(USED, "")
        text = model_card.write_network(f"{name}-{key}", found_by, prepared, candidate.fold, settings, used, licence)
        found = _version(tracker, name, key)
        if found is None:
            tracker.text(candidate.run_id, text, "card.md")
            tracker.artifacts(candidate.run_id, network, f"models/{key}")
            found = _create_version(tracker, name, key, candidate.run_id, {"val_loss": f"{val_loss:.4f}"}, text)
        elif licence:
            _renew_card(tracker, name, found, candidate.run_id, text)
    return RegisteredNetwork(_give_alias(tracker, candidate, name, found, alias, seen), found, text)


def alias_of(candidate: Candidate, given: str | None) -> str | None:
    """The alias that a candidate's version gets: the given one, else `champion`, and none after a limit on its patients."""
    return given or (None if candidate.is_limited else CHAMPION)


def alias_version(tracker: Tracker, name: str, alias: str = CHAMPION) -> str:
    """The version of a registered model that an alias names; empty where there is none."""
    try:
        return str(tracker.client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if not is_permanent(error):
            raise
        return ""


def _give_alias(
    tracker: Tracker, candidate: Candidate, name: str, number: str, given: str | None, seen: str | None = None
) -> str:
    """Give a version its alias, unless somebody has moved that meanwhile, and say so; returns how to ask for it."""
    alias = alias_of(candidate, given)
    if alias is None:
        log.warning("registered %s version %s under no alias: a limit left patients out of training", name, number)
        return f"models:/{name}/{number}"
    now = alias_version(tracker, name, alias)
    if seen is not None and now not in (seen, number):
        log.warning(
            "registered %s version %s; %s stays version %s, which it was not when the search began. To change it: "
            "python jobs/promote.py RUN_ID",
            *(name, number, alias, now),
        )
        return f"models:/{name}/{number}"
    tracker.client.set_registered_model_alias(name, alias, number)
    log.info("registered %s version %s as %s", name, number, alias)
    return f"models:/{name}@{alias}"


def save(network: Path, inference: Inference, folder: Path) -> None:
    """Write a self-contained pyfunc model, sealed: code, weights and inference settings."""
    with tempfile.TemporaryDirectory() as temporary:
        settings = Path(temporary) / "inference.json"
        settings.write_text(inference.to_json(), encoding="utf-8")
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=serving.__file__,
            artifacts={serving.NETWORK: str(network), serving.INFERENCE: str(settings)},
            code_paths=[str(Path(raymed.__file__).parent)],
            signature=serving.signature(inference.labels.names),
            input_example=serving.EXAMPLE,
            pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in NEEDS],
        )
    seal(folder)


@dataclass(frozen=True)
class Resolved:
    """A model on the local disk.

    Attributes:
        name: what to call it.
        network: folder of the exported network.
        inference: temperature and picture settings; None for a bare checkpoint, which has neither.
    """

    name: str
    network: Path
    inference: Inference | None

    def notes(self, prepared: Prepared, split: str) -> list[str]:
        """What a person should know before judging this model on a split of these data.

        Raises:
            UserError: the pictures or the classes are not those that the model was made for.
        """
        if self.inference is None:
            recipe = json.loads((self.network / RECIPE_FILE).read_text("utf-8"))
            names = recipe.get("names", [])
            own, given = [names], [prepared.labels.names]
            if "codes" in recipe:
                own, given = [names, recipe["codes"]], [prepared.labels.names, prepared.labels.codes]
            if own != given:
                raise UserError(
                    f"{self.name} decides between {', '.join(names) or 'no classes'}, but {prepared.folder.uri} has "
                    f"{', '.join(prepared.labels.names) or 'none'}: prepare the data again with the model's label table"
                )
            return ["a bare checkpoint: temperature 1, 16 slices of each patient"]
        if self.inference.image != prepared.image:
            raise UserError(
                f"{self.name} looks at pictures with {self.inference.image}, but {prepared.folder.uri} was prepared with "
                f"{prepared.image}: prepare the data again with the model's settings"
            )
        own_labels, given_labels = self.inference.labels, prepared.labels
        if (own_labels.codes, own_labels.names) != (given_labels.codes, given_labels.names):
            raise UserError(
                f"{self.name} decides between {', '.join(self.inference.labels.names)}, but {prepared.folder.uri} has "
                f"{', '.join(prepared.labels.names)}: prepare the data again with the model's label table"
            )
        if self.inference.data != prepared.digest:
            return ["other data than the model was trained on: make sure that no patient is in both"]
        if split == "all":
            return ["the model was trained on some of these patients: the figures flatter it"]
        if split in self.inference.trained_on:
            return [f"the model was trained on {split} patients: the figures say nothing about others"]
        return [] if split == "test" else [f"the model was chosen by {split} patients: the figures flatter it"]


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
        return _opened(uri, candidate.fetch(candidate.checkpoint, _scratch()))
    return _opened(uri, Path(uri).expanduser().absolute())


def open_tower(uri: str, tracking: str) -> VisionTower:
    """The ViT of the model that a URI or a folder names as for `resolve_model`; or of any model folder or file of weights,
    by its path or by its name under RAYMED_MODELS.

    Raises:
        UserError: there is none.
    """
    if uri.startswith(("models:/", "runs:/")):
        return VisionTower.read(resolve_model(uri, Tracker.open(tracking)).network, uri)
    path = find_model(uri, MODEL_FILES)
    known = [path / "MLmodel", path / RECIPE_FILE, path / "model" / RECIPE_FILE]
    return VisionTower.read(_opened(uri, path).network if any(file.is_file() for file in known) else path)


def _opened(uri: str, folder: Path) -> Resolved:
    if (folder / "MLmodel").is_file():
        check_seal(folder)
        artifacts = mlflow.models.Model.load(str(folder)).flavors["python_function"]["artifacts"]
        inference = Inference.read(folder / artifacts[serving.INFERENCE]["path"])
        return Resolved(inference.name, folder / artifacts[serving.NETWORK]["path"], inference)
    for network in (folder / "model", folder):
        if (network / RECIPE_FILE).is_file():
            return Resolved(uri, network, None)
    raise UserError(
        f"{uri} is not a model: there is neither MLmodel nor {RECIPE_FILE} in {folder}. Give "
        "models:/raymed-lung@champion, runs:/RUN_ID, or the folder of a checkpoint."
    )


def _download(uri: str, tracker: Tracker) -> Path:
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
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


def _key(candidate: Candidate, refit: Refit | None, prepared: Prepared) -> str:
    described = json.dumps([asdict(candidate), refit and asdict(refit), prepared.digest])
    return hashlib.blake2b(described.encode(), digest_size=4).hexdigest()


def _version(tracker: Tracker, name: str, key: str) -> str | None:
    versions = tracker.client.search_model_versions(f"name = '{name}'")
    return next((str(each.version) for each in versions if each.tags.get(KEY) == key), None)


def _create_version(tracker: Tracker, name: str, key: str, run_id: str, says: Mapping[str, str], text: str) -> str:
    client, run = tracker.client, tracker.describe(run_id)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {KEY: key, "raymed.run": run.id, "raymed.run_name": run.name, **says}
    source = f"{client.get_run(run.id).info.artifact_uri}/models/{key}"
    created = client.create_model_version(name, source, run.id, tags=tags, description=text)
    return str(created.version)


def _renew_card(tracker: Tracker, name: str, number: str, run_id: str, text: str) -> None:
    tracker.client.update_model_version(name, number, text)
    tracker.text(run_id, text, "card.md")


def _figures(judgement: Judgement) -> dict[str, str]:
    """A judgement's figures, as tags of a model version."""
    tags = {f"val_{metric}": f"{each.value:.4f}" for metric, each in judgement.validation.metrics.items()}
    if judgement.test is not None:
        tags |= {f"test_{metric}": f"{each.value:.4f}" for metric, each in judgement.test.metrics.items()}
    return tags


def _log(tracker: Tracker, judgement: Judgement, text: str) -> None:
    run_id = judgement.candidate.run_id
    tracker.text(run_id, text, "card.md")
    tracker.metrics(run_id, {"temperature": judgement.temperature})
    for split, evaluation in (("calibrated_val", judgement.validation), ("test", judgement.test)):
        if evaluation is not None:
            tracker.metrics(run_id, {f"{split}_{name}": value for name, value in evaluation.flat().items()})
            names = judgement.class_names
            tracker.figure(run_id, figures.confusion(evaluation, names), f"figures/{split}_confusion.png")
            tracker.figure(run_id, figures.reliability(evaluation), f"figures/{split}_reliability.png")
            tracker.figure(run_id, figures.roc(evaluation, names), f"figures/{split}_roc.png")
