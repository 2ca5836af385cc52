"""What cannot be used is counted by slice and by patient, with reasons."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from raymed.data.labels import LabelTable
from raymed.data.quarantine import Quarantine
from raymed.data.sources import Listing, Refusal, Slice, Study
from raymed.data.survey import Survey
from raymed.errors import UserError


def quarantine(patients: int, limit: str, refusals: tuple[Refusal, ...] = ()) -> Quarantine:
    """Of patients of three slices each."""
    studies = tuple(
        Study(f"p{n}", f"p{n}", None, "", tuple(Slice(f"p{n}/{k}", "", None, k, "") for k in range(3)), "")
        for n in range(patients)
    )
    listing = Listing(Path(), "folders", studies, refusals)
    return Quarantine(Survey(listing, LabelTable(()), studies, {}), {}, limit)


def refused(*slices: tuple[str, int, str]) -> pa.Table:
    rows = [
        {"study": patient, "patient": patient, "id": f"{patient}/{k}", "where": f"{patient}/{k}", "reason": reason}
        for patient, k, reason in slices
    ]
    return pa.Table.from_pylist(rows)


def test_a_patient_left_without_a_slice_is_named_with_the_commonest_reason() -> None:
    kept = quarantine(24, "6%", (Refusal("x", "x", "empty", "an empty folder"), Refusal("y", "y", None, "a link")))
    kept.add(refused(("p7", 0, "NaN pixels"), ("p7", 1, "NaN pixels")))
    used = {f"p{n}" for n in range(24)}
    assert kept.left_out(used) == {"empty": "an empty folder"}
    with pytest.raises(UserError, match=r"2 of 25 patients have no slice.*6\.0%: empty: an empty folder; p7: NaN pixels\."):
        kept.left_out(used - {"p7"})


def test_few_slices_may_be_many_patients() -> None:
    lost = [("p1", k, "truncated") for k in range(3)]
    kept = quarantine(10, "10%")
    kept.add(refused(*lost))
    assert kept.left_out({f"p{n}" for n in range(10) if n != 1}) == {"p1": "truncated"}
    with pytest.raises(UserError, match=r"1 of 9 patients"):
        kept.left_out({f"p{n}" for n in range(2, 10)})


def test_what_is_passed_over_is_listed_and_no_damage() -> None:
    scouts = tuple(Refusal(f"scout{n}", f"scout{n}", "p1", "a localizer", expected=True) for n in range(9))
    kept = quarantine(3, "5%", scouts)
    assert kept.damaged == 0 and [line["expected"] for line in kept.lines] == [True] * 9
    with pytest.raises(UserError, match=r"^1 of 9 records cannot be used.*: truncated \(1, e\.g\. p1/0\)\. Mend"):
        kept.add(refused(("p1", 0, "truncated")))


def test_patients_whose_label_is_ignored_are_not_missed() -> None:
    other = Study("cap", "cap", "cap", "", (Slice("cap/0", "", None, 0, ""),), "")
    used = Study("p0", "p0", "viral", "", (Slice("p0/0", "", None, 0, ""),), "")
    refusals = (Refusal("cap/1", "cap/1", "cap", "truncated"),)
    listing = Listing(Path(), "folders", (other, used), refusals)
    kept = Quarantine(Survey(listing, LabelTable(()), (used,), {"cap": 1}), {}, "50%")
    assert kept.left_out({"p0"}) == {}
