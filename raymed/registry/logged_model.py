"""A registered network as MLflow's logged model: on the pages of its run and its search, with its figures and its data."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import LoggedModel as MlflowModel
from mlflow.entities import LoggedModelOutput, Metric

from raymed.compat.mlflow import MODEL_VERSIONS
from raymed.tracking.names import metric_name
from raymed.tracking.tracker import KEY, Tracker


@dataclass(frozen=True)
class LoggedModel:
    """A model that a run made.

    Attributes:
        id: as MLflow names it.
        uri: where its files lie.
    """

    id: str
    uri: str


def log_model(
    tracker: Tracker, run_id: str, folder: Path, key: str, system: str, figures: Mapping[str, float]
) -> LoggedModel:
    """Log a folder as the model of a run, and show it with the run's search, too.

    Args:
        key: names the model.
        system: what the registered model is called.
        figures: of the model, by their metrics' names, on the data that the run had as its input.
    """
    client, run = tracker.client, tracker.describe(run_id)
    there = client.get_run(run.id)
    experiment, inputs = there.info.experiment_id, there.inputs.dataset_inputs if there.inputs else []
    data = (inputs[0].dataset.name, inputs[0].dataset.digest) if inputs else (None, None)
    made = client.create_logged_model(experiment, f"{system}-{key}", run.id, {KEY: key}, model_type=system)
    for other in _with_key(tracker, experiment, key):
        if other.model_id != made.model_id:  # its registration was cut short, or the answer to this creation was lost
            client.delete_logged_model(other.model_id)
    client.log_model_artifacts(made.model_id, str(folder))
    client.finalize_logged_model(made.model_id, "READY")
    now = int(time.time() * 1000)
    metrics = [Metric(metric_name(name), float(value), now, 0, made.model_id, *data) for name, value in figures.items()]
    for start in range(0, len(metrics), 500):  # MLflow's limit for one request is 1000
        client.log_batch(run.id, metrics[start : start + 500])
    for owner in filter(None, (run.id, run.parent)):
        client.log_outputs(owner, [LoggedModelOutput(made.model_id, 0)])
    return LoggedModel(made.model_id, made.artifact_location)


def name_version(tracker: Tracker, run_id: str, key: str, name: str, version: str) -> None:
    """Show the model of a run that has this key as a version of a registered model."""
    for model in _with_key(tracker, tracker.client.get_run(run_id).info.experiment_id, key):
        others = [each for each in json.loads(model.tags.get(MODEL_VERSIONS, "[]")) if each["name"] != name]
        versions = json.dumps([*others, {"name": name, "version": version}])
        tracker.client.set_logged_model_tags(model.model_id, {MODEL_VERSIONS: versions})


def _with_key(tracker: Tracker, experiment: str, key: str) -> list[MlflowModel]:
    return list(tracker.client.search_logged_models([experiment], f"tags.`{KEY}` = '{key}'"))
