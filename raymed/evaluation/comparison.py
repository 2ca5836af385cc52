"""An evaluation beside what needs no picture, in words: for the terminal, the card and the page."""

from __future__ import annotations

from raymed.evaluation.metrics import Evaluation


def comparison(evaluation: Evaluation) -> dict[str, str]:
    """Sentences by their title; each is there only where it holds."""
    baselines, source = evaluation.baselines, evaluation.baselines.source
    always = f"right for {100 * baselines.accuracy:.1f} % of these {evaluation.units}"
    if not evaluation.beats_majority:
        always += "; the model is not surely better than that"
    sentences = {f"always {baselines.majority}": always}
    if "loss" in evaluation.metrics:
        sentences["class frequencies"] = f"loss {baselines.loss:.3f}"
    if source is not None and source.tells:
        sentences["the source alone"] = (
            f"{_macro_auc(source.classes, evaluation)} {source.macro_auc:.3f}, {source.class_name} {source.class_auc:.3f}: "
            "more than chance, so a model can look good by telling sources apart"
        )
    if source is not None and source.within is not None:
        sentences["the model within sources"] = (
            f"{_macro_auc(source.within_classes, evaluation)} {source.within} over pairs of {evaluation.units} of one source"
        )
    if evaluation.without_patients:
        sentences[f"no {evaluation.unit} has"] = (
            f"{', '.join(evaluation.without_patients)}: means over classes leave that out"
        )
    return sentences


def _macro_auc(classes: int, evaluation: Evaluation) -> str:
    """The figure's name, with how many classes it is over, where that is not all."""
    of = len(evaluation.classes)
    return "macro AUC" if classes == of else f"macro AUC of {classes} of {of} classes"
