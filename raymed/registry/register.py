"""From a trial to a model that others can use: judged, calibrated, registered under an alias, with its card.

Whoever picks the trial, the search or a person in the MLflow UI, it goes through the same steps. Doing it again for the
same trial finds the version that is there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

import raymed
from raymed.data.acquisition import Acquisition
from raymed.data.prepared import Prepared
from raymed.errors import RunError, UserError
from raymed.evaluation import figures
from raymed.evaluation.estimate import Estimate
from raymed.evaluation.metrics import difference_interval
from raymed.evaluation.predict import Inference
from raymed.recipes.exported import RECIPE_FILE, open_model
from raymed.registry import model_card, serving
from raymed.registry.assessment import Assessment, Candidate, Refit, judge, validated_patients
from raymed.registry.logged_model import LoggedModel, log_model
from raymed.storage.seal import seal
from raymed.tracking.tracker import USED, Tracker, is_permanent

log = logging.getLogger("raymed")

CHAMPION = "champion"
KEY = "raymed.key"
TEST_PATIENTS = "raymed.test_patients"  # a tag: digest of the test patients that a run was judged on
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
        assessment: how good it is.
        looks: how many models these test patients have judged so far, by the tracking server; 0 without test patients.
    """

    name: str
    version: str
    uri: str
    assessment: Assessment
    looks: int


def assess_and_register(
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
        assessment = judge(candidate, model, prepared, micro_batch, workers, bootstrap)
        name = f"raymed-{model[0].name}"
        key = _key(candidate, refit, prepared)
        inference = Inference(
            name=f"{name}-{key}",
            labels=prepared.labels,
            image=prepared.image,
            slices=candidate.slices,
            temperature=assessment.temperature,
            calibrated_slices=int(assessment.validation_patients.slices.min()),
            data=prepared.digest,
            known=candidate.known_patients(prepared, refit),
            acquisition=Acquisition.of(prepared, candidate.trained_rows(prepared, refit)),
        )
        looks = _count_look(tracker, assessment)
        text = model_card.write(inference, assessment, prepared, model[0].settings(), refit, licence, looks)
        found = _version(tracker, name, key)
        if found is None:
            if refit is not None:
                network = candidate.fetch(refit.checkpoint, Path(temporary) / "refitted" / "model")
            _log(tracker, assessment, text)
            save(network, inference, Path(temporary) / "pyfunc")
            logged = log_model(
                tracker, candidate.run_id, Path(temporary) / "pyfunc", key, name, {} if refit else assessment.flat()
            )
            found = _create_version(tracker, name, key, candidate.run_id, logged, _figures(assessment, refit), text)
        elif licence:
            _renew_card(tracker, name, found, candidate.run_id, text)
    difference = against(tracker, assessment, name, found, alias_of(candidate, alias))
    if difference is not None and seen is not None and difference.low is not None and difference.low > 0:
        log.warning(
            "surely worse on the same validation patients: the alias stays. To move it: python jobs/promote.py RUN_ID"
        )
        return Registered(name, found, f"models:/{name}/{found}", assessment, looks)
    return Registered(name, found, _give_alias(tracker, candidate, name, found, alias, seen), assessment, looks)


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
        alias: as for `assess_and_register`.
        seen: as for `assess_and_register`.

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
            logged = log_model(tracker, candidate.run_id, network, key, name, {"val_loss": val_loss})
            found = _create_version(tracker, name, key, candidate.run_id, logged, {"val_loss": f"{val_loss:.4f}"}, text)
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


def against(tracker: Tracker, assessment: Assessment, name: str, number: str, alias: str | None) -> Estimate | None:
    """By how much a version's validation loss is above that of the one that an alias names, over the same patients; logged.

    None where there is no other version, or it was validated on other patients.
    """
    now = alias_version(tracker, name, alias) if alias is not None else ""
    if now in ("", number):
        return None
    try:
        run = tracker.describe(str(tracker.client.get_model_version(name, now).run_id))
        other = Candidate.of_run(tracker, run.id)
        patients = validated_patients(other.checkpoint, other.open_data(), run.metrics["temperature"])
        difference = difference_interval(assessment.validation_patients, patients, seed=assessment.candidate.seed)
    except (UserError, RunError, KeyError) as error:
        log.info("not compared with version %s (%s): %s", now, alias, error)
        return None
    log.info("validation loss against version %s (%s), on the same patients: %s more", now, alias, difference)
    return difference


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


def _key(candidate: Candidate, refit: Refit | None, prepared: Prepared) -> str:
    described = json.dumps([asdict(candidate), refit and asdict(refit), prepared.digest])
    return hashlib.blake2b(described.encode(), digest_size=4).hexdigest()


def _version(tracker: Tracker, name: str, key: str) -> str | None:
    versions = tracker.client.search_model_versions(f"name = '{name}'")
    return next((str(each.version) for each in versions if each.tags.get(KEY) == key), None)


def _create_version(
    tracker: Tracker, name: str, key: str, run_id: str, logged: LoggedModel, says: Mapping[str, str], text: str
) -> str:
    client, run = tracker.client, tracker.describe(run_id)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {KEY: key, "raymed.run": run.id, "raymed.run_name": run.name, **says}
    created = client.create_model_version(name, logged.uri, run.id, tags=tags, description=text, model_id=logged.id)
    logged.name_version(tracker, name, str(created.version))
    return str(created.version)


def _renew_card(tracker: Tracker, name: str, number: str, run_id: str, text: str) -> None:
    tracker.client.update_model_version(name, number, text)
    tracker.text(run_id, text, "card.md")


def _count_look(tracker: Tracker, assessment: Assessment) -> int:
    """Note that a model was judged on its test patients; returns how many were so far."""
    if assessment.test_patients is None:
        return 0
    ids = "\0".join(map(str, assessment.test_patients.ids))  # sorted
    digest = hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()
    tracker.tags(assessment.candidate.run_id, {TEST_PATIENTS: digest})
    return tracker.count(TEST_PATIENTS, digest)


def _figures(assessment: Assessment, refit: Refit | None) -> dict[str, str]:
    """A assessment's figures, as tags of a model version; of a refit, whose network was not judged, they say so."""
    tags = {f"val_{metric}": f"{each.value:.4f}" for metric, each in assessment.validation.metrics.items()}
    if assessment.test is not None:
        tags |= {f"test_{metric}": f"{each.value:.4f}" for metric, each in assessment.test.metrics.items()}
    return tags | ({"figures_of": "before_refit"} if refit is not None else {})


def _log(tracker: Tracker, assessment: Assessment, text: str) -> None:
    run_id = assessment.candidate.run_id
    tracker.text(run_id, text, "card.md")
    tracker.metrics(run_id, {"temperature": assessment.temperature})
    for split, evaluation in assessment.evaluations.items():
        names = assessment.class_names
        tracker.figure(run_id, figures.confusion(evaluation, names), f"figures/{split}_confusion.png")
        if evaluation.calibration is not None:
            tracker.figure(run_id, figures.reliability(evaluation.calibration), f"figures/{split}_reliability.png")
        tracker.figure(run_id, figures.roc(evaluation, names), f"figures/{split}_roc.png")
