"""The tags that MLflow's pages read are called as they were."""

from __future__ import annotations

from pathlib import Path

import mlflow
from mlflow.utils import mlflow_tags
from upgrade import since

from raymed.compat import mlflow as compat


def test_an_upgrade_of_mlflow_left_the_names_of_its_tags() -> None:
    with since(compat):
        names = ("PARENT_RUN_ID", "RUN_NOTE", "MODEL_VERSIONS", "DATASET_CONTEXT")
        ours = (compat.PARENT, compat.NOTE, compat.MODEL_VERSIONS, compat.DATA_CONTEXT)
        assert [getattr(mlflow_tags, f"MLFLOW_{name}", None) for name in names] == list(ours)


def test_an_upgrade_of_mlflow_left_its_pages_reading_a_shared_view() -> None:
    with since(compat):
        ((tag, _),) = compat.shared_view("trials", "x", ()).items()
        scripts = list((Path(mlflow.__file__).parent / "server" / "js" / "build" / "static").rglob("*.js"))
        wanted = {tag.removesuffix("trials"), "viewStateShareKey", compat.EXPERIMENT_KIND, compat.TRAINING_RUNS}
        found = {word for script in scripts for word in wanted if word in script.read_text("utf-8", "ignore")}
        assert found == wanted
