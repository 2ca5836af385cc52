"""The winner of a search that is judged by its validation loss alone: registered, with a card that says how it was found.

What a pretrained backbone is worth shows only where it is used. So there are no patients to judge here, and no test figures.
"""

from __future__ import annotations

import json

from optuna.trial import FrozenTrial

from raymed.data.leak import guard
from raymed.data.prepared import Prepared
from raymed.job import Outcome
from raymed.registry import register_network
from raymed.tuning.morning import STATES, best_trial
from raymed.tuning.night import Night
from raymed.tuning.study import BEST_EPOCH, Study, best_value


def register_winner(night: Night, study: Study) -> Outcome:
    """Register the trial with the lowest validation loss.

    Raises:
        RunError: no trial completed an epoch.
    """
    best, tracker = best_trial(night, study), night.open_tracker()
    run = tracker.find(night.trial_key(best)) or ""
    card = _card(night, study, best)
    uri = register_network(tracker, night.candidate(run, best), best_value(best), card)
    parent = str(tracker.find(night.name))
    report = f"{card}\n{_table(night, study)}\n"
    tracker.text(parent, report, "report.md")
    tracker.metrics(parent, {"val_loss": best_value(best)})
    tracker.finish(parent, "FINISHED")
    night.template.folder.write("report.md", report.encode())
    night.thin_out(study, best)
    lines = [
        f"{len(study.trials)} trials; best: {night.label(best)}, val_loss {best_value(best):.4f} in epoch "
        f"{best.user_attrs[BEST_EPOCH]}",
        f"registered: {uri}",
        f"take its ViT out: python jobs/extract_vit.py --model {uri} --tracking-uri {night.tracking_uri} --out VIT",
        f"look at it: mlflow ui --backend-store-uri {night.tracking_uri}",
        f"report: {night.template.folder.uri}/report.md",
    ]
    data = {
        "name": night.name,
        "best_trial": best.number,
        "val_loss": best_value(best),
        "model": uri,
        "tracking_uri": night.tracking_uri,
        "report": f"{night.template.folder.uri}/report.md",
    }
    return Outcome("\n".join(lines), data)


def _card(night: Night, study: Study, best: FrozenTrial) -> str:
    prepared, spec = Prepared.open(night.template.data), night.spec(best)
    return "\n".join(
        [
            f"# {night.name}",
            "",
            f"{night.label(best)}: val_loss {best_value(best):.4f} in epoch {best.user_attrs[BEST_EPOCH]}, the lowest of "
            f"{len(study.trials)} trials. A lower loss here does not prove a better backbone: compare on its own task.",
            "",
            f"- data: {prepared.manifest.source}, digest {prepared.digest}",
            f"- leak guard: {guard(prepared.index, night.template.fold)}",
            f"- command: `{night.command}`",
            "",
            "```json",
            json.dumps(spec.recipe.settings(), ensure_ascii=False, indent=2),
            "```",
            "",
        ]
    )


def _table(night: Night, study: Study) -> str:
    """All trials, the best first, as Markdown."""
    searched = list(night.search.space)
    heads = ["trial", "state", "val_loss", "best epoch", *searched]
    rows = [
        [str(trial.number), STATES[trial.state], f"{best_value(trial):.4f}", str(trial.user_attrs.get(BEST_EPOCH, ""))]
        + [str(trial.params.get(name, "")) for name in searched]
        for trial in sorted(study.trials, key=best_value)
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows])
