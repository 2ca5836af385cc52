"""An evaluation beside what needs no picture, in words: for the terminal, the card and the page."""

from __future__ import annotations

from collections.abc import Mapping

from raymed.evaluation.metrics import Evaluation
from raymed.language import say


def comparison(evaluation: Evaluation, called: Mapping[str, str] | None = None) -> dict[str, str]:
    """Sentences by their title; each is there only where it holds.

    Args:
        called: what a reader is told of a class, by its name; its name where nothing is said.
    """
    called = called or {}
    baselines, source = evaluation.baselines, evaluation.baselines.source
    unit, units = say(evaluation.unit), say(evaluation.units)
    always = say("right for {share:.1f} % of these {units}", share=100 * baselines.accuracy, units=units)
    if not evaluation.beats_majority:
        always += say("; the model is not surely better than that")
    sentences = {say("always {majority}", majority=called.get(baselines.majority, baselines.majority)): always}
    if "loss" in evaluation.metrics:
        sentences[say("class frequencies")] = say("loss {loss:.3f}", loss=baselines.loss)
    if source is not None and source.tells:
        sentences[say("the source alone")] = say(
            "{macro} {auc:.3f}, {name} {own:.3f}: more than chance, so a model can look good by telling sources apart",
            macro=_macro_auc(source.classes, evaluation),
            auc=source.macro_auc,
            name=called.get(source.class_name, source.class_name),
            own=source.class_auc,
        )
    if source is not None and source.within is not None:
        sentences[say("the model within sources")] = say(
            "{macro} {within} over pairs of {units} of one source",
            macro=_macro_auc(source.within_classes, evaluation),
            within=source.within,
            units=units,
        )
    if evaluation.without_patients:
        sentences[say("no {unit} has", unit=unit)] = say(
            "{classes}: means over classes leave that out",
            classes=", ".join(called.get(each, each) for each in evaluation.without_patients),
        )
    return sentences


def _macro_auc(classes: int, evaluation: Evaluation) -> str:
    """The figure's name, with how many classes it is over, where that is not all."""
    of = len(evaluation.classes)
    if classes == of:
        return say("macro AUC")
    return say("macro AUC of {classes} of {count} classes", classes=classes, count=of)
