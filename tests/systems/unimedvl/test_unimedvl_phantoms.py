"""Phantom pairs: what changes is what is said to change, on the side that is said, and nothing else does."""

import json
from pathlib import Path

import numpy as np
import pytest

from raymed.data.phantom import PhantomSettings
from raymed.data.phantom_notes import KINDS
from raymed.data.sources.listing import SourceSettings
from raymed.systems.unimedvl.listing import list_sequences
from raymed.systems.unimedvl.mixture_config import MixtureConfig
from raymed.systems.unimedvl.phantoms import GROUPS, Phantom, lines, phantom, write_phantoms

SETTINGS = PhantomSettings(patients=8, size=96, difficulty=0.2)


@pytest.fixture(scope="module")
def cases() -> list[Phantom]:
    return [phantom(SETTINGS, number) for number in range(SETTINGS.patients)]


def test_a_lesion_comes_or_goes_on_the_side_that_is_said_and_nothing_else_changes(cases) -> None:
    for case in cases:
        filled, clear = (case.shown, case.changed) if case.label in KINDS else (case.changed, case.shown)
        more = np.maximum(filled.astype(int) - clear, 0)
        left = more[:, more.shape[1] // 2 :].sum() / more.sum()  # the patient's left is on the right of the picture
        side = "in the left lung" if left > 0.8 else "in the right lung" if left < 0.2 else "in both lungs"
        assert case.extent.side == side
        assert (filled != clear).mean() < 0.5
        near, near_changed = case.near.astype(int), case.near_changed.astype(int)
        changes = np.abs(case.shown.astype(int) - case.changed)
        assert near.shape == (36, 36) and np.abs(near - near_changed).mean() > 2 * changes.mean(), "a close-up of the change"


def test_a_window_changes_the_grey_values_and_not_the_plane(cases) -> None:
    for case in cases:
        assert case.mediastinum.shape == case.shown.shape
        air = case.shown < 60
        assert np.all(case.mediastinum[air] == 0) and not np.array_equal(case.mediastinum, case.shown)


def test_patients_are_a_function_of_seed_and_number(cases) -> None:
    again = phantom(PhantomSettings(patients=99, size=96, difficulty=0.2, slices=(1, 2)), 3)
    assert np.array_equal(again.shown, cases[3].shown) and np.array_equal(again.changed, cases[3].changed)
    assert not np.array_equal(phantom(PhantomSettings(size=96, difficulty=0.2, seed=1), 3).shown, cases[3].shown)


def test_answers_say_what_is_drawn(cases) -> None:
    for number, case in enumerate(cases):
        asked = {line["message"][0]["value"].removeprefix("<image>\n"): line for _, line in lines(case, number, 96)}
        affected = case.label in KINDS
        assert asked["Is there pneumonia?"]["message"][1]["value"] == ("Yes." if affected else "No.")
        which = asked["Which lung is affected?"]["message"][1]["value"].strip(".").lower()
        assert which in (case.extent.side if affected else "none")
        edit = next(text for text in asked if text.startswith("Remove" if affected else "Add"))
        assert case.extent.side in edit


def test_what_is_written_is_read_without_a_refusal_and_written_once(tmp_path: Path) -> None:
    config = write_phantoms(tmp_path / "phantoms", SETTINGS)
    listing, counts = list_sequences(MixtureConfig.read(config), SourceSettings())
    assert not listing.refusals and listing.patients_known
    assert len(counts) == len(GROUPS) and sum(each["lines"] for each in counts.values()) == 8 * 7
    assert len({study.patient for study in listing.studies}) == 8
    line = json.loads((tmp_path / "phantoms" / "lesions.jsonl").read_text().splitlines()[0])
    assert line["input_img"][0]["width"] == 36
    before = config.stat().st_mtime_ns
    assert write_phantoms(tmp_path / "phantoms", SETTINGS).stat().st_mtime_ns == before
