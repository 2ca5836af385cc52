"""All experiments of a server are looked at, and not only those of its first page."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

from mlflow import MlflowClient

from raymed.tracking.experiments import all_experiments


def test_runs_in_all_experiments_are_found_however_many_there_are(tmp_path: Path) -> None:
    """A server gives 1,000 at once: looks at the same test patients were counted in those alone."""
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    made = {client.create_experiment(f"experiment {number}") for number in range(5)}
    by_two = SimpleNamespace(search_experiments=partial(client.search_experiments, max_results=2))
    assert made < {*all_experiments(by_two)}  # type: ignore[arg-type]
