"""The experiments of a tracking server."""

from __future__ import annotations

from mlflow import MlflowClient
from mlflow.entities import ViewType


def all_experiments(client: MlflowClient, which: int = ViewType.ACTIVE_ONLY) -> list[str]:
    """Ids of a server's experiments, which it gives by pages."""
    ids, token = list[str](), None
    while True:
        page = client.search_experiments(which, page_token=token)
        ids += [each.experiment_id for each in page]
        token = page.token
        if not token:
            return ids
