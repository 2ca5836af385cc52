"""How MLflow's pages show trials: as training runs with their losses as columns, the best first."""

from __future__ import annotations

from raymed.compat.mlflow import EXPERIMENT_KIND, TRAINING_RUNS, shared_view
from raymed.language import say

VIEW = "trials"
BEST = "best_val_loss"  # of a trial's best epoch, which it is chosen by

COLUMNS = (
    f"metrics.`{BEST}`", "metrics.`best_epoch`", "metrics.`val_loss`", "metrics.`epoch`", "tags.`raymed.state`",
    "tags.`raymed.tie`", "attributes.`Duration`", "attributes.`Models`",
)  # fmt: skip

# of an experiment
TAGS = {EXPERIMENT_KIND: TRAINING_RUNS, **shared_view(VIEW, f"metrics.`{BEST}`", COLUMNS)}


def where_to_look(tracking_uri: str, experiment_id: str) -> str:
    """The page that shows an experiment's trials, and the command that serves it where no server does."""
    page = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
    if tracking_uri.startswith(("http://", "https://")):
        return say("look at it: {address}", address=f"{tracking_uri.rstrip('/')}/{page}")
    return say(
        "look at it: mlflow ui --backend-store-uri {uri}\n            and open {address}",
        uri=tracking_uri,
        address=f"http://127.0.0.1:5000/{page}",
    )
