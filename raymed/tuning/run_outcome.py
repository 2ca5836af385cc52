"""What a single run leaves: its best checkpoint, where to look at it, and what to do next."""

from __future__ import annotations

from optuna.trial import TrialState

from raymed.errors import RunError
from raymed.job.job import Outcome
from raymed.language import say
from raymed.recipes.metric import LAST
from raymed.storage.folder import Folder
from raymed.training.checkpoint import read_history
from raymed.tuning.search import Search
from raymed.tuning.study import BEST_POINT, CHECKPOINT, REASON, Study

REGISTER = "judge and register it: python jobs/promote.py {run_id}"


def run_outcome(search: Search, study: Study, advice: str = REGISTER) -> Outcome:
    """What a single run leaves.

    Args:
        advice: what to do next, with the places {run_id} and {checkpoint}.

    Raises:
        RunError: the run failed.
    """
    trial = study.trials[-1]
    tracker = search.open_tracker()
    run = tracker.find(search.trial_key(trial))
    failed = say("the run failed: {reason}", reason=trial.user_attrs.get(REASON) or say("no epoch was completed"))
    if CHECKPOINT not in trial.user_attrs:
        raise RunError(failed)
    if trial.state == TrialState.FAIL:
        raise RunError(
            f"{failed}\nThe same command goes on from the last checkpoint. The best one is that of "
            f"{study.best_point(trial)}: {trial.user_attrs[CHECKPOINT]}"
        )
    monitor = search.template.monitor
    if monitor.name == "val_loss":
        chosen = ""
    else:
        chosen = say(", the last") if monitor == LAST else say(", chosen by {metric}", metric=monitor.name)
    checkpoint = trial.user_attrs[CHECKPOINT]
    val_loss = read_history(Folder.at(checkpoint))[-1].get("val_loss")  # an earlier try may have trained that epoch
    if val_loss is None and advice == REGISTER:
        advice = "nobody is left to judge it, so it is not registered"
    lines = [
        say(
            "{value} in {point} of {last}{chosen}; checkpoint {checkpoint}",
            value=say("no val_loss") if val_loss is None else f"val_loss {val_loss:.4f}",
            point=study.best_point(trial),
            last=trial.last_step,
            chosen=chosen,
            checkpoint=checkpoint,
        ),
        tracker.look_at_it,
        say(advice, run_id=run, checkpoint=checkpoint),
    ]
    data = {"run_id": run, "name": search.name, "val_loss": val_loss, "checkpoint": checkpoint}
    data |= {f"best_{study.noun}": trial.user_attrs[BEST_POINT], f"{study.noun}s": trial.last_step}
    return Outcome("\n".join(lines), data | {"tracking_uri": search.tracking_uri})
