"""A run as MLflow knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymed.compat.mlflow import PARENT

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class RunRecord:
    """What MLflow knows of a run. `metrics` holds the last value of each; one that was deleted can be restored."""

    id: str
    name: str
    status: str
    parent: str | None
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    is_deleted: bool = False

    @classmethod
    def of(cls, run: Run) -> RunRecord:
        """What MLflow answered."""
        tags = dict(run.data.tags)
        return cls(
            id=run.info.run_id,
            name=run.info.run_name,
            status=run.info.status,
            parent=tags.get(PARENT),
            params=dict(run.data.params),
            tags=tags,
            metrics=dict(run.data.metrics),
            is_deleted=run.info.lifecycle_stage == "deleted",
        )
