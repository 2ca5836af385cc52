"""The assessment of a report writer: guards before figures, and no patient where others read."""

import html
from dataclasses import replace
from datetime import datetime

import numpy as np
import pandas as pd

from raymed.data.labels import LabelTable
from raymed.data.plan import SliceSettings
from raymed.data.usage import Usage
from raymed.evaluation import intervals
from raymed.evaluation.findings import Findings
from raymed.evaluation.search_summary import DataSummary, SearchSummary, TrialSummary
from raymed.evaluation.text_guards import CaptionLosses, commonest_guard, shuffle_guard
from raymed.evaluation.text_metrics import Texts, score_texts
from raymed.recipes.metric import VAL_LOSS
from raymed.registry.assessment import CardFacts
from raymed.registry.candidate import Candidate, Refit
from raymed.registry.loss_assessment import LossAssessment
from raymed.storage.folder import Folder
from raymed.systems.mamba_vlm.assessment import CAUTION, THEN, ReportAssessment
from raymed.systems.mamba_vlm.evaluation import ReportEvaluation
from raymed.training.checkpoint import seal
from raymed.training.predictions import write_predictions

PATIENTS = np.array([f"Smith{n:02d}" for n in range(12)], dtype=object)


def evaluation(looks: bool) -> ReportEvaluation:
    """Of a model that looks at pictures, or of one that writes the same of all."""
    references = [f"nodule in the {('left', 'right')[n % 2]} lung" for n in range(12)]
    generated = references if looks else references[:1] * 12
    findings = Findings(LabelTable.open("chest_findings"))
    scores = score_texts(Texts(PATIENTS, references, generated), findings)
    baseline = score_texts(Texts(PATIENTS, references, references[:1] * 12), findings)
    nll = np.random.default_rng(0).normal(20, 3, 12)
    tokens = np.full(12, 10)
    own, swapped = (CaptionLosses(PATIENTS, nats, tokens) for nats in (nll, nll * (2 if looks else 1)))
    texts = pd.DataFrame({"patient_id": PATIENTS, "reference": references, "generated": generated})
    loss = intervals.mean(own.by_patient, 100, 0)
    return ReportEvaluation((shuffle_guard(own, swapped), commonest_guard(scores, baseline)), loss, scores, texts)


def assessment(prepared, looks: bool) -> ReportAssessment:
    candidate = Candidate("run", "checkpoint", prepared.folder.uri, None, SliceSettings(choice="all"), 0, prepared.digest)
    return ReportAssessment(candidate, prepared, 1.5, CAUTION, THEN, "test", evaluation(looks))


def test_a_model_that_does_not_look_is_called_so_on_the_card_and_in_one_sentence(prepared) -> None:
    blind, seeing = (assessment(prepared, looks) for looks in (False, True))
    assert "FAILED image shuffle, commonest report" in blind.headline()
    card = blind.card(CardFacts("raymed-mamba_vlm-1", "Found.", {"recipe": "mamba_vlm"}))
    assert card.index("FAILED: image shuffle") < card.index("caption loss") < card.index("## Data")
    assert "passed every guard" in seeing.headline()
    assert blind.tags()["guards"] == "failed" and seeing.tags()["guards"] == "passed"


def test_patients_are_in_the_table_alone(prepared) -> None:
    judged = assessment(prepared, True)
    card = judged.card(CardFacts("raymed-mamba_vlm-1", "Found.", {"recipe": "mamba_vlm"}))
    read_by_others = [card, judged.headline(), *judged.lines(), *judged.tags().values(), *judged.figures()]
    assert not any("Smith" in text for text in read_by_others)
    assert judged.files()["texts.csv"].count(b"Smith") == 12
    assert list(judged.test_ids) == sorted(PATIENTS)


def test_every_figure_is_a_number_under_a_name_of_its_own(prepared) -> None:
    figures = assessment(prepared, True).figures()
    assert figures["val_loss"] == 1.5 and figures["test_passed_image_shuffle"] == 1
    assert all(np.isfinite(value) for value in figures.values())


def test_another_model_is_worse_by_the_loss_of_the_same_patients(prepared, tmp_path) -> None:
    rows = np.arange(prepared.index.num_rows)
    nll = np.random.default_rng(1).normal(20, 1, len(rows))
    for name, nats in (("own", nll), ("worse", nll + 5 + np.random.default_rng(2).normal(0, 1, len(rows)))):
        (tmp_path / name).mkdir()
        write_predictions(tmp_path / name, {"row": rows, "nll": nats, "tokens": np.full(len(rows), 10)})
        seal(tmp_path / name, 0, 1)
    judged = assessment(prepared, True)
    judged = replace(judged, candidate=replace(judged.candidate, checkpoint=str(tmp_path / "own")))
    worse = replace(judged.candidate, checkpoint=str(tmp_path / "worse"))
    [difference] = judged.differences(VAL_LOSS, {3: Folder.at(tmp_path / "worse")}).values()
    assert difference.low is not None and 0.3 < difference.low < difference.value < 0.7
    above = judged.above(worse, {})
    assert above is not None and above.high is not None and above.high < 0
    assert judged.above(replace(worse, data_digest="other"), {}) is None


def test_a_trial_whose_predictions_are_damaged_is_left_out_and_the_others_are_compared(prepared, tmp_path) -> None:
    rows = np.arange(prepared.index.num_rows)
    for name in ("own", "torn", "other"):
        (tmp_path / name).mkdir()
        write_predictions(tmp_path / name, {"row": rows, "nll": np.full(len(rows), 20.0), "tokens": np.full(len(rows), 10)})
        seal(tmp_path / name, 0, 1)
    (tmp_path / "torn" / "predictions.npz").write_bytes(b"cut short")
    judged = assessment(prepared, True)
    judged = replace(judged, candidate=replace(judged.candidate, checkpoint=str(tmp_path / "own")))
    others = {1: Folder.at(tmp_path / "torn"), 2: Folder.at(tmp_path / "gone"), 3: Folder.at(tmp_path / "other")}
    assert list(judged.differences(VAL_LOSS, others)) == [3]


def test_the_page_has_guards_before_figures_and_names_no_patient(prepared) -> None:
    usage, curve = Usage({}, {}, {}), [{"epoch": epoch, "value": 2.0 / epoch} for epoch in (1, 2, 3)]
    trials = [
        TrialSummary(0, "COMPLETE", {"train.lr": 1e-4, "train.global_batch": 2}, curve, 3, 2 / 3),
        TrialSummary(1, "PRUNED", {"train.lr": 5e-5, "train.global_batch": 4}, curve[:1], 1, 2.0, reason="<gone>"),
    ]
    search = SearchSummary(
        name="night", system="mamba_vlm", model="models:/m@champion", started=datetime(2026, 1, 1), seconds=1.0,
        trials=trials, champion=0, data=DataSummary("reports", "digest", usage, 0, 0, "", "no patient is in two splits"),
        command="python jobs/overnight.py --stage 2",
    )  # fmt: skip
    facts = CardFacts("raymed-mamba_vlm-1", "Found.", {"recipe": "mamba_vlm"})
    for looks in (True, False):
        name, page = assessment(prepared, looks).page(search, facts)
        page = html.unescape(page)
        assert name == "report.html" and "Smith" not in page and "<script" not in page and "src=" not in page
        assert page.index("image shuffle") < page.index("finding_f1") < page.index("nodule") < page.index("<gone>")
        assert ("fails a guard" in page) != looks and page.count('class="failed"') == (0 if looks else 2)
        assert page.count("<svg") == 2, "learning curves, and how the search went"
    again = replace(facts, refit=Refit("checkpoint", ("train", "val")))
    page = html.unescape(LossAssessment.page(assessment(prepared, True), search, again)[1])
    assert "every patient of train + val" in page and "image shuffle" not in page, "a loss alone has no guards"
