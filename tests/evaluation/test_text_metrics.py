"""Figures of generated texts: right for Chinese, each patient once, and findings that a text denies are not in it."""

import numpy as np
import pytest
from sacrebleu import sentence_bleu

from raymed.data.labels import LabelTable
from raymed.errors import UserError
from raymed.evaluation.findings import Findings
from raymed.evaluation.text_metrics import Texts, Variety, bleu, commonest, rouge_l, score_texts

CHEST = Findings(LabelTable.open("chest_findings"))


def names(text: str) -> set[str]:
    return {CHEST.table.names[index] for index in CHEST.of(text)}


def test_rouge_l_of_chinese_counts_characters_and_is_not_zero() -> None:
    assert rouge_l(["左肺上叶空洞"], ["左肺上叶空洞"]).tolist() == [1.0]
    # 左 肺 叶 洞 in common: 4 of 6 and 4 of 5 characters
    assert rouge_l(["左肺上叶空洞"], ["左肺下叶洞"]) == pytest.approx([2 * (4 / 6) * (4 / 5) / (4 / 6 + 4 / 5)])
    assert rouge_l(["A cavity on the left."], ["the left cavity"]) == pytest.approx(
        [2 * (2 / 5) * (2 / 3) / (2 / 5 + 2 / 3)]
    )


def test_bleu_is_sacrebleus_and_of_chinese_by_characters() -> None:
    reference, text = "A cavity in the left upper lobe.", "A cavity in the right upper lobe."
    assert bleu([reference], [text]) == pytest.approx([sentence_bleu(text, [reference]).score / 100])
    assert bleu(["左肺上叶空洞影"], ["左肺上叶空洞影"]) == pytest.approx([1.0])
    assert 0 < bleu(["左肺上叶空洞影"], ["左肺上叶实变影"])[0] < 1
    assert bleu([reference], [""]) == pytest.approx([0.0])


@pytest.mark.parametrize(
    ("text", "findings"),
    [
        ("Dense consolidation in the left lung.", {"consolidation", "left"}),
        ("No consolidation or effusion, but a nodule on the right.", {"nodule", "right"}),
        ("There is no pneumothorax. Ground glass opacities.", {"ground glass"}),
        ("Without cysts; opacity remains.", {"opacity"}),
        ("右肺上叶空洞,未见积液,左肺无结节。", {"right", "upper", "cavity", "left"}),
        ("Leftover massive copyright.", set()),
        ("", set()),
    ],
)
def test_findings_are_words_that_the_text_does_not_deny(text: str, findings: set[str]) -> None:
    assert names(text) == findings


def test_each_patient_counts_once_however_many_reports_there_are() -> None:
    patients = np.array(["A"] * 9 + ["B"], dtype=object)
    texts = Texts(patients, ["left nodule"] * 10, ["left nodule"] * 9 + ["right effusion"])
    scores = score_texts(texts, CHEST)
    assert scores.metrics["finding_f1"].value == pytest.approx(0.5)
    assert scores.metrics["finding_f1"].low is None, "two patients suffice for no interval"
    assert scores.by_patient["rouge_l"].tolist() == [1.0, 0.0]


def test_interval_of_a_mean_over_patients_holds_it_and_the_same_seed_gives_the_same() -> None:
    patients = np.array([f"P{n}" for n in range(40)], dtype=object)
    generated = ["left nodule" if n % 3 else "right nodule" for n in range(40)]
    texts = Texts(patients, ["left nodule"] * 40, generated)
    figure = score_texts(texts, CHEST).metrics["finding_f1"]
    assert figure.low is not None and figure.high is not None
    assert figure.low < figure.value < figure.high < 1
    assert score_texts(texts, CHEST).metrics == score_texts(texts, CHEST).metrics


def test_the_figures_of_a_finding_are_over_texts() -> None:
    texts = Texts(np.array(["A", "B", "C"], dtype=object), ["nodule", "nodule", "mass"], ["nodule", "mass", "mass"])
    nodule, mass = score_texts(texts, CHEST).findings
    assert (nodule.name, nodule.support, nodule.named) == ("nodule", 2, 1)
    assert nodule.f1 is not None and nodule.f1.value == pytest.approx(2 / 3)
    assert (mass.support, mass.named) == (1, 2)


def test_texts_that_differ_only_in_blanks_and_case_are_one() -> None:
    variety = Variety.of(["Clear.", "clear. ", "Nodule."], ["Mass.", "mass.", "MASS. "])
    assert (variety.distinct, variety.distinct_references) == (1, 2)
    assert commonest(["b", "a", "b", "a", "c"]) == "a"


def test_texts_are_as_various_as_they_can_be_where_patients_share_a_report() -> None:
    references = ["clear", "clear", "left", "right", "both"]
    variety = Variety.of(references, references)
    assert (variety.distinct, variety.apart, variety.single, variety.single_references) == (4, 3, 3, 3)
    mixed = Variety.of(references, ["clear", "clear", "left", "left", "both"])
    assert (mixed.apart, mixed.single, mixed.single_references) == (2, 1, 3), (
        "two patients with reports of their own got one text"
    )
    shared = Variety.of(references, ["left", "clear", "left", "right", "both"])
    assert (shared.apart, shared.single) == (3, 2), (
        "one of the three texts was also given to a patient whose report is shared"
    )
    assert str(mixed) == (
        "different texts 3 of 5 (60%), references 4 (80%); "
        "for the 3 with a reference like no other 2 (67%), 1 of them like no other of all"
    )
    assert str(Variety.of(["clear"] * 2, ["clear"] * 2)) == "different texts 1 of 2 (50%), references 1 (50%)"


def test_an_empty_text_is_counted_and_not_made_up() -> None:
    scores = score_texts(Texts(np.array(["A"], dtype=object), ["nodule"], [" "]), CHEST)
    assert scores.empty == 1 and scores.metrics["rouge_l"].value == 0


def test_no_text_is_an_error() -> None:
    with pytest.raises(UserError, match="no text to judge"):
        Texts(np.array([], dtype=object), [], [])
