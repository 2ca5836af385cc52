import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from search_report import CLASSES, morning, patients, without_drawings

from raymed.data.usage import Usage
from raymed.evaluation.metrics import evaluate
from raymed.evaluation.patients import Patients, softmax
from raymed.evaluation.report import HardPatient, SearchReport, TrialSummary, render

CHROMIUM = Path("/usr/bin/chromium")


class Page(HTMLParser):
    """Elements, links and words of a page; ids in order; complains about tags that do not close."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.attributes: set[str] = set()
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            self.attributes.add(name)
            if name in ("src", "href", "xlink:href"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag == "img":
            assert dict(attributes).get("alt")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def report() -> SearchReport:
    return morning()


@pytest.fixture(scope="module")
def page(report: SearchReport) -> Page:
    return Page(render(report))


def test_the_page_needs_nothing_from_outside_and_its_anchors_lead_somewhere(page: Page) -> None:
    for link in page.links:
        assert link.startswith("data:image/png;base64,") or link.removeprefix("#") in page.ids
    assert "script" not in page.tags
    assert len(set(page.ids)) == len(page.ids)


def test_the_headline_says_what_won_by_how_much_and_how_sure_that_is(page: Page, report: SearchReport) -> None:
    assert report.test
    accuracy = report.test.metrics["accuracy"]
    default = next(trial for trial in report.trials if trial.number == 0)
    assert default.value
    assert f"Trial {report.champion} won: {100 * accuracy.value:.1f} % of 89 test patients right" in page.text
    assert f"95 % interval {100 * accuracy.low:.1f} – {100 * accuracy.high:.1f}" in page.text
    assert f"the default settings (trial 0) reached {default.value:.3f}" in page.text
    assert default.difference and default.difference.low is not None and default.difference.high is not None
    interval = f"{default.difference.low:.3f} to {default.difference.high:.3f}"
    assert f"{default.difference.value:.3f} more on the same patients (95 % interval {interval})" in page.text
    assert "cannot be told apart from it on these patients" in page.text


def test_every_trial_is_on_the_page_with_its_state_and_why_it_failed(page: Page, report: SearchReport) -> None:
    rows = [f"trial-{trial.number}" for trial in report.trials]
    assert set(rows) <= set(page.ids)
    assert "out of memory on worker 1" in page.text
    assert "19 finished, 19 stopped early, 2 failed" in page.text


def test_every_slice_of_the_hardest_patients_is_shown(page: Page, report: SearchReport) -> None:
    assert page.tags.count("img") == sum(len(patient.slices) for patient in report.hardest)


def test_rare_classes_are_marked(page: Page) -> None:
    assert "fewer than 10" in page.text
    assert "Macro F1, without rare classes" in page.text


def test_rare_classes_are_not_in_the_tiles_on_top(page: Page, report: SearchReport) -> None:
    assert report.test
    assert "Macro AUC of 3 of 4 classes, test" in page.text
    few = evaluate(patients((5, 5, 5, 5), 3.0, 1), CLASSES, bootstrap=5)
    tiles = Page(without_drawings(dataclasses.replace(report, test=few))).text.split("Assessment per patient")[0]
    assert "Accuracy, test" in tiles and "Macro AUC" not in tiles
    three = evaluate(patients((30, 30, 30, 0), 3.0, 1), CLASSES, bootstrap=5)
    tiles = Page(without_drawings(dataclasses.replace(report, test=three))).text.split("Assessment per patient")[0]
    assert "Macro AUC of 3 of 4 classes, test" in tiles, "a class that nobody has is in no mean either"
    over_three = report.validation.metrics["macro_auc_without_rare"].value
    assert f"validation {over_three:.3f}" in tiles, "beside it a mean over the same classes"
    assert f"validation {report.validation.metrics['macro_auc'].value:.3f}" not in tiles


def test_probabilities_are_called_badly_calibrated_only_where_chance_does_not_explain_it(report: SearchReport) -> None:
    def said(sharpness: float) -> str:
        generator = np.random.default_rng(2)
        probabilities = softmax(generator.normal(size=(200, 4)) * 2)
        labels = (probabilities.cumsum(axis=1) < generator.random((200, 1))).sum(axis=1)
        ids, one, nowhere = np.arange(200).astype(str), np.ones(200, np.int64), np.full(200, "", object)
        judged = Patients(ids, labels, softmax(np.log(probabilities) * sharpness), one, nowhere)
        return Page(without_drawings(dataclasses.replace(report, test=evaluate(judged, CLASSES, bootstrap=200)))).text

    assert "larger than chance explains" in said(3.0)
    calibrated = said(1.0)
    assert "larger than chance explains" not in calibrated
    assert "Probabilities are calibrated" not in calibrated


def test_nothing_that_comes_from_data_becomes_markup(report: SearchReport) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }}"
    classes = tuple(f"{name}{evil}" for name in CLASSES)
    judged = evaluate(patients((6, 6, 6, 4), 2.0, 0), classes, bootstrap=5)
    judged = dataclasses.replace(judged, sources=tuple(dataclasses.replace(source, name=evil) for source in judged.sources))
    attacked = dataclasses.replace(
        report,
        name=evil, system=evil, model=evil, command=evil, hardest_split=evil, names=classes, validation=judged, test=judged,
        trials=[
            TrialSummary(0, "FAILED", {evil: evil}, reason=evil, run_id=evil),
            TrialSummary(1, "COMPLETE", {evil: 1}, [{"epoch": 1, "value": 0.5}], 1, 0.5, run_id=evil),
            TrialSummary(2, "COMPLETE", {evil: 2}, [{"epoch": 1, "value": 0.6}], 1, 0.6, run_id=evil),
        ],
        champion=1,
        hardest=[HardPatient(evil, 0, [0.1, 0.2, 0.3, 0.4], [np.zeros((9, 9, 1), np.uint8)])],
        data=dataclasses.replace(
            report.data, source=evil, digest=evil, guard=evil, near_duplicates=evil, usage=Usage(*[{evil: {"train": 1}}] * 3)
        ),
        cost={evil: evil}, importance={evil: 1.0}, versions={evil: evil}, notes=[evil],
    )  # fmt: skip
    page = Page(render(attacked))
    assert "script" not in page.tags
    assert page.tags.count("img") == 1
    assert not [name for name in page.attributes if name.startswith("on")]
    assert "{{ 7*7 }}" in page.text
    assert page.text.count("<script>alert(1)</script>") > 20


def test_the_table_says_what_each_trial_took(page: Page, report: SearchReport) -> None:
    assert page.text.count("0.19 h, 0.09") == sum(bool(trial.took) for trial in report.trials) > 1


def test_a_search_of_one_trial_without_test_patients_has_a_page(report: SearchReport) -> None:
    trial = TrialSummary(0, "COMPLETE", {"lr": 0.1}, [{"epoch": 1, "value": 1.2}], 1, 1.2)
    page = Page(render(dataclasses.replace(report, trials=[trial], champion=0, test=None, hardest=(), importance={})))
    assert "with the default settings" in page.text
    assert "There are no test patients" in page.text
    assert "do not show which parameter matters" in page.text
    assert "#hardest" not in page.links


def test_a_trial_chosen_by_a_person_is_not_called_the_lowest(report: SearchReport) -> None:
    page = Page(without_drawings(dataclasses.replace(report, champion=0)))
    assert "A person chose it" in page.text
    assert "It has the lowest" not in page.text


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs chromium")
@pytest.mark.parametrize(("width", "scheme"), [(1180, "light"), (375, "dark")])
def test_a_browser_shows_the_page_without_requests_complaints_or_sideways_scrolling(
    report: SearchReport, tmp_path: Path, width: int, scheme: str
) -> None:
    from playwright.sync_api import sync_playwright

    file = tmp_path / "report.html"
    file.write_text(render(report), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        requests: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(file.as_uri())
        assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
        assert complaints == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        small = page.evaluate(
            "[...document.querySelectorAll('figure svg')].filter(svg => svg.getBoundingClientRect().height < 80).length"
        )
        assert small == 0
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(246, 247, 249)", "dark": "rgb(16, 20, 26)"}[scheme]
        browser.close()
