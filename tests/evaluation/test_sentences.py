"""Words are data: each sentence that claims something has a rule, and pages on which it holds and on which it is left out.
Those of the model card are in test_card_sentences.py.

A sentence that is on a page and in neither table below is a failure, so none is added without its rule.
"""

import dataclasses
import re
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest
from search_report import CLASSES, morning, patients, without_drawings

from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.evaluation import summary
from raymed.evaluation.calibration import Temperature
from raymed.evaluation.data_page import look_at
from raymed.evaluation.estimate import Estimate
from raymed.evaluation.metrics import evaluate
from raymed.evaluation.patients import Patients, softmax
from raymed.evaluation.report import SearchReport, TrialSummary, render
from raymed.evaluation.single_slices import SingleSlices
from raymed.recipes.metric import Metric
from raymed.registry.assessment import CardFacts
from raymed.registry.candidate import Candidate, Refit
from raymed.registry.model_card import unknown_patients
from raymed.registry.patient_assessment import PatientAssessment

CLAIMS = {
    # sentence of the page: a page on which it holds, and one on which it does not
    "It has the lowest validation loss": ("usual", "chosen by a person"),
    "of 38 trials that have one": ("usual", "no failures"),
    "It has the lowest validation loss of 38 trials,": ("no failures", "usual"),
    "Its validation loss is 1.200": ("one trial", "usual"),
    "macro AUC of 3 of 4 classes": ("usual", "one source"),
    "A person chose it": ("chosen by a person", "usual"),
    "the default settings (trial 0) reached": ("usual", "one trial"),
    "with the default settings": ("one trial", "usual"),
    "before they were stopped early": ("default stopped", "usual"),
    "more on the same patients (95 % interval": ("usual", "another aim"),
    "cannot be told apart from it on these patients": ("usual", "no ties"),
    "cannot be told apart from the best on these patients": ("chosen by a person", "usual"),
    "the default settings among them": ("usual", "no ties"),
    "No other trial ties with it": ("no ties", "another aim"),
    "have judged 3 models so far : figures of one that is picked by them flatter": ("third look", "usual"),
    "Test patients have judged no other model": ("usual", "third look"),
    "Validation patients chose the winner and fitted its temperature": ("usual", "one trial"),
    "There are no test patients: validation patients chose the epoch": ("one trial", "usual"),
    "There are no test patients: validation patients chose the winner": ("no test", "usual"),
    "A patient's probability is the mean over the slices": ("usual", "images"),
    "Each image decides for itself": ("images", "usual"),
    "the model is not surely better than that": ("guessing", "usual"),
    "more than chance, so a model can look good by telling sources apart": ("telling source", "usual"),
    "over pairs of patients of one source": ("usual", "one source"),
    "means over classes leave that out": ("class without patients", "usual"),
    "Each of the 240 slices by itself: 75.0 % are given their patient's diagnosis": ("single slices", "usual"),
    "Slices of a patient err together, so the shares have no interval": ("single slices", "usual"),
    "The calibration error is larger than chance explains": ("too sure", "calibrated"),
    "The calibration error is no larger than a perfectly calibrated model's": ("calibrated", "too sure"),
    "the model is too sure": ("too sure", "calibrated"),
    "the model is not sure enough": ("usual", "too sure"),
    "1 would be calibrated": ("calibrated", "too sure"),
    "cannot be formed: every decision is right": ("perfect", "usual"),
    "A tie: the 95 % interval": ("usual", "another aim"),
    "Those whose diagnosis the model thought least likely": ("usual", "one trial"),
    "the largest is larger than shuffled figures would make it": ("usual", "chance"),
    "The finished trials do not show which parameter matters": ("chance", "few trials"),
    "Too few finished trials, or parameters that differ": ("few trials", "chance"),
    "One line per trial": ("usual", "one trial"),
    "without a usable slice": ("usual", "images"),
    "The same in all trials": ("usual", "another aim"),
    "Trial 11 failed": ("usual", "one trial"),
}
FIXED = (
    # says what is shown, what a word means or what to do: nothing that could be otherwise
    r"^raymed · ",
    r"^Trial \d+ won: ",
    r"^trials?,? ",
    r"^(Accuracy|Macro AUC|Loss)\b",
    r"^[\d.]+ % ?95 % interval|^[\d.]+ 95 % interval",
    r"^Look here first",
    r"^diagnosis ",
    r"^Rows: diagnosis|^Columns: the model's decision|^(Patients|Images|Slices), and share of the row",
    r"^Each class against the rest|^The dashed line is chance",
    r"^Intervals are 95 %",
    r"^They know nothing of another hospital",
    r"^Does a confidence of 80 %",
    r"^Probabilities are scaled: ",
    r"^On the dashed line confidence",
    r"^Area: number of",
    r"^\d+ finished, ",
    r"^Validation loss of every trial|^accuracy of every trial|^Accuracy of every trial",
    r"^The axis ends beyond",
    r"^Each trial's ",
    r"^Share of each parameter",
    r"^2023\)",
    r"^Thick: |^Coloured: |^Faint: ",
    r"^(Patients|Images) per class and split",
    r"^Figures hold for (patients|images) like those",
    r"^They are no clinical validation",
    r"^-?[\d.]+ ; a perfectly calibrated model",
    r"^-?[\d.]+ , 95 % interval",
    r"^Pneumocystis has 4 test patients",
)


class Sentences(HTMLParser):
    """The sentences of a page's paragraphs, facts and captions."""

    WITHIN = ("p", "dd", "li", "figcaption", "caption", "dt")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.parts: list[tuple[str, str]] = []
        self.open: list[str] | None = None
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: object) -> None:
        if tag in self.WITHIN:
            self.inside, self.open = tag, []

    def handle_endtag(self, tag: str) -> None:
        if self.open is not None and tag == self.inside:
            self.parts.append((tag, " ".join(" ".join(self.open).split())))
            self.open = None

    def handle_data(self, data: str) -> None:
        if self.open is not None:
            self.open.append(data)

    @property
    def text(self) -> str:
        return "\n".join(words for _, words in self.parts)

    @property
    def claiming(self) -> list[str]:
        """Sentences of the paragraphs, captions and footers: facts and labels beside figures are none."""
        prose = [words for tag, words in self.parts if tag in ("p", "figcaption", "caption")]
        return [sentence for words in prose for sentence in re.split(r"(?<=[.?!]) (?=[A-Z0-9])", words) if sentence]


def calibrated(sharpness: float, count: int = 300) -> Patients:
    """Perfectly calibrated where the sharpness is 1."""
    generator = np.random.default_rng(2)
    probabilities = softmax(generator.normal(size=(count, 4)) * 2)
    labels = (probabilities.cumsum(axis=1) < generator.random((count, 1))).sum(axis=1)
    ids, nowhere = np.arange(count).astype(str), np.full(count, "", object)
    return Patients(ids, labels, softmax(np.log(probabilities) * sharpness), np.ones(count, np.int64), nowhere)


@cache
def usual() -> SearchReport:
    return morning()


@cache
def page(name: str) -> Sentences:
    """A page of that name, rendered."""
    report = usual()
    trial = TrialSummary(0, "COMPLETE", {"lr": 0.1}, [{"epoch": 1, "value": 1.2}], 1, 1.2)

    def judged(by: Patients, classes: tuple[str, ...] = CLASSES) -> SearchReport:
        return dataclasses.replace(report, test=evaluate(by, classes, bootstrap=100))

    def every(**changes: object) -> list[TrialSummary]:
        return [dataclasses.replace(one, **changes) for one in report.trials]  # type: ignore[arg-type]

    sharp = patients((30, 30, 30, 30), 9.0, 1)
    mine = patients((28, 29, 27, 4), 3.4, 1)
    told = np.where(mine.labels == 0, "east", "west").astype(object)
    surely, shown = Estimate(0.2, 0.1, 0.3), np.arange(240) % 4
    made = {
        "usual": lambda: report,
        "chosen by a person": lambda: dataclasses.replace(report, champion=0),
        "one trial": lambda: dataclasses.replace(report, trials=[trial], champion=0, test=None, hardest=(), importance=None),
        "default stopped": lambda: dataclasses.replace(
            report, trials=[dataclasses.replace(one, state="PRUNED") if not one.number else one for one in report.trials]
        ),
        "another aim": lambda: dataclasses.replace(
            report,
            trials=[
                dataclasses.replace(one, difference=None, tie=False, params={"lr": one.number}) for one in report.trials
            ],
            objective=Metric("accuracy", "", "max", "{:.3f}"),
            champion=max((one for one in report.trials if one.value is not None), key=lambda one: one.value or 0).number,
        ),
        "no ties": lambda: dataclasses.replace(report, trials=every(tie=False, difference=surely)),
        "no failures": lambda: dataclasses.replace(report, trials=[one for one in report.trials if one.value is not None]),
        "third look": lambda: dataclasses.replace(report, looks=3),
        "no test": lambda: dataclasses.replace(report, test=None),
        "images": lambda: dataclasses.replace(
            report,
            **{
                name: evaluate(dataclasses.replace(mine, unit="image"), CLASSES, bootstrap=50)
                for name in ("test", "validation")
            },
            data=dataclasses.replace(
                report.data, guard="no image is in two splits", near_duplicates="no near-duplicate images"
            ),
            notes=(),
        ),
        "guessing": lambda: judged(patients((20, 20, 20, 20), 0.0, 3)),
        "single slices": lambda: dataclasses.replace(report, single=SingleSlices.of(shown % 3, np.eye(4)[shown], CLASSES)),
        "telling source": lambda: judged(dataclasses.replace(mine, sources=told)),
        "one source": lambda: judged(dataclasses.replace(mine, sources=np.full(len(mine.ids), "", object))),
        "class without patients": lambda: judged(mine.part(mine.labels != 3)),
        "too sure": lambda: judged(calibrated(3.0)),
        "calibrated": lambda: judged(calibrated(1.0)),
        "perfect": lambda: judged(dataclasses.replace(sharp, probabilities=softmax(9.0 * np.eye(4)[sharp.labels]))),
        "chance": lambda: dataclasses.replace(report, importance={}),
        "few trials": lambda: dataclasses.replace(report, importance=None),
    }
    return Sentences(without_drawings(made[name]()))


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_sentence_is_on_the_page_where_it_holds_and_not_where_it_does_not(claim: str) -> None:
    holds, fails = CLAIMS[claim]
    assert claim in page(holds).text
    assert claim not in page(fails).text


def test_no_sentence_is_on_a_page_without_a_rule() -> None:
    for name in {name for pair in CLAIMS.values() for name in pair}:
        for sentence in page(name).claiming:
            ways = sentence, sentence.replace("image", "patient")  # one rule for both words
            known = any(claim in way for claim in CLAIMS for way in ways) or any(
                re.search(words, sentence) for words in FIXED
            )
            assert known, (
                f"{sentence!r} of the page {name!r} is in no table: give it a rule and a page on which it is left out"
            )


def assessed(prepared: Prepared, judged: Patients | None, **changes: object) -> PatientAssessment:
    """An assessment of patients that nobody predicted."""
    candidate = Candidate("run", "checkpoint", prepared.folder.uri, None, SliceSettings(), 0)
    validation = dataclasses.replace(patients((28, 29, 27, 12), 3.4, 1), unit=prepared.manifest.unit)
    if judged is not None:
        judged = dataclasses.replace(judged, unit=prepared.manifest.unit)
    test = None if judged is None else evaluate(judged, CLASSES, bootstrap=50)
    made = PatientAssessment(
        candidate, prepared, Temperature(0.9, 0.5), CLASSES, evaluate(validation, CLASSES, bootstrap=50), validation, test,
        judged, candidate.usage(prepared),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


FACTS = CardFacts("raymed-lung-1", "The search.", {"recipe": "lung", "model": {"preset": "tiny"}})


def test_where_nobody_knows_whose_the_pictures_are_no_page_speaks_of_patients(prepared: Prepared) -> None:
    """But where it says just that."""
    manifest = dataclasses.replace(prepared.manifest, patients_known=False)
    nobodys = dataclasses.replace(prepared, manifest=manifest)
    judged = patients((28, 29, 27, 4), 1.0, 1)
    assessment = assessed(nobodys, judged)
    report = dataclasses.replace(usual(), looks=2, data=dataclasses.replace(
        usual().data, source="a folder", usage=assessment.usage, near_duplicates="no near-duplicate images", guard="",
    ))  # fmt: skip
    search = {name: getattr(report, name) for name in vars(report) if name in SearchReport.__mro__[1].__dataclass_fields__}
    hardest = dataclasses.replace(assessment, test=None, test_patients=None)
    evaluation = assessment.test
    assert evaluation is not None
    shown = render(dataclasses.replace(
        usual(), **search, validation=hardest.validation, test=evaluation, temperature=assessment.scaling,
        notes=assessment.notes(Refit("", ("train",))),
    ))  # fmt: skip
    data = look_at(nobodys).render()
    pages = {
        "report": Sentences(shown).text + re.sub(r"<style>.*?</style>|<[^>]+>", " ", shown, flags=re.S),
        "data page": re.sub(r"<style>.*?</style>|<[^>]+>", " ", data, flags=re.S),
        "card": assessment.card(dataclasses.replace(FACTS, looks=2, refit=Refit("", ("train", "val")))),
        "terminal": "\n".join([*assessment.lines(), assessment.headline(), *summary.lines(evaluation)]),
        "files": "\n".join(f"{name}: {content.decode().splitlines()[0]}" for name, content in assessment.files().items()),
    }
    (warning,) = unknown_patients(nobodys)
    allowed = (warning, warning[0].upper() + warning[1:], "Pictures, not patients", "whether a patient is, nobody knows")
    for name, text in pages.items():
        for words in allowed:
            text = text.replace(words, "").replace(words.replace("'", "&#39;"), "")
        found = [line.strip() for line in text.splitlines() if "patient" in line.lower()]
        assert not found, (name, found[:5])
        assert "image" in text, name
    assert any(warning in text for text in (pages["report"].lower(), pages["card"]))
