"""Tags that MLflow's own pages read, and that its documentation does not promise.

MLflow itself is not imported: whoever only names a tag does without it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

SEEN = "3.17.2"

# mlflow/utils/mlflow_tags.py
PARENT = "mlflow.parentRunId"  # shows a run below another one; the client, unlike the fluent API, has no argument for it
NOTE = "mlflow.note.content"  # what a run's page says, as Markdown
MODEL_VERSIONS = "mlflow.modelVersions"  # of a logged model: the registered versions that its page names
DATA_CONTEXT = "mlflow.data.context"  # of an input: training or evaluation
EXPERIMENT_KIND = "mlflow.experimentKind"  # which page an experiment gets; named in its JavaScript only
TRAINING_RUNS = "custom_model_development"  # the kind whose page shows training runs, and not prompts


def shared_view(name: str, order_by: str, columns: Sequence[str]) -> dict[str, str]:
    """The tag of an experiment that lets an address with ``viewStateShareKey=NAME`` show its runs in this order with these
    columns: what the page itself writes when a person shares a view (`experimentPageViewState` in MLflow's JavaScript)."""
    state = {
        "orderByKey": order_by,
        "orderByAsc": True,
        "selectedColumns": columns,
        "searchFilter": "",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "startTime": "ALL",
        "modelVersionFilter": "All Runs",
    }
    return {f"mlflow.sharedViewState.{name}": json.dumps(state)}
