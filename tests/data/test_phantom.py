"""Phantom patients: deterministic, whole on disk, and with something to learn in them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raymed.data.phantom import CLASSES, PhantomSettings, phantom_patient, write_phantoms
from raymed.data.sources import SourceSettings, list_source
from raymed.errors import UserError

SMALL = PhantomSettings(patients=4, size=64, slices=(5, 7))


def test_patient_depends_on_seed_and_number_only() -> None:
    label, slices = phantom_patient(SMALL, 2)
    again = phantom_patient(PhantomSettings(patients=400, size=64, slices=(5, 7)), 2)
    assert (label, 5 <= len(slices) <= 7) == ("viral", True)
    assert all(np.array_equal(a, b) for a, b in zip(slices, again[1], strict=True))
    other = phantom_patient(PhantomSettings(patients=4, size=64, slices=(5, 7), seed=1), 2)[1]
    assert not np.array_equal(slices[0], other[0])


def test_slices_are_lung_window_pictures_that_change_over_the_series() -> None:
    _, slices = phantom_patient(PhantomSettings(size=128, slices=(9, 9), difficulty=0.0), 0)
    assert all(pixels.shape == (128, 128) and pixels.dtype == np.uint8 for pixels in slices)
    assert abs(int(np.median(slices[4][:6])) - 59) <= 3  # air, -1000 HU, in W1500 L-600
    dark = [int(((pixels > 62) & (pixels < 120)).sum()) for pixels in slices]
    assert dark[4] > 1.3 * dark[0] and dark[4] > 1.3 * dark[-1]  # the lungs are largest in the middle


def test_disease_makes_lungs_denser_than_healthy_ones() -> None:
    settings = PhantomSettings(size=96, slices=(8, 8), difficulty=0.0)

    def hazy(number: int) -> float:
        middle = np.stack(phantom_patient(settings, number)[1])[:, 20:70]
        return float(((middle > 125) & (middle < 205)).mean())

    means = {name: np.mean([hazy(index + 4 * k) for k in range(4)]) for index, name in enumerate(CLASSES)}
    assert min(means["viral"], means["pneumocystis"]) > 1.15 * means["normal"]


def test_written_patients_list_as_labelled_folders_of_balanced_classes(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "new", SMALL)
    listing = list_source(tmp_path / "new", SourceSettings())
    assert [study.label for study in listing.studies] == list(CLASSES)
    assert not listing.refusals and not listing.notes
    first = listing.studies[0].slices[0]
    assert np.array_equal(np.asarray(Image.open(listing.root / first.path)), phantom_patient(SMALL, 0)[1][0])


def test_second_run_writes_nothing_and_a_stopped_one_is_completed(tmp_path: Path) -> None:
    write_phantoms(tmp_path, SMALL)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    write_phantoms(tmp_path, SMALL)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == before
    marker = tmp_path / ".phantoms.json"
    marker.write_text(marker.read_text().replace("true", "false"))
    lost = tmp_path / "viral" / "phantom_0002"
    lost.rename(lost.with_name(".phantom_0002"))
    write_phantoms(tmp_path, SMALL)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert set(after) == set(before)
    assert {path.parent.name for path in after if after[path] != before[path]} == {"phantom_0002"}


def test_never_writes_among_other_files_or_other_phantoms(tmp_path: Path) -> None:
    (tmp_path / "normal").mkdir()
    with pytest.raises(UserError, match="other files"):
        write_phantoms(tmp_path, SMALL)
    write_phantoms(tmp_path / "phantoms", SMALL)
    with pytest.raises(UserError, match="other settings"):
        write_phantoms(tmp_path / "phantoms", PhantomSettings(patients=5, size=64, slices=(5, 7)))


@pytest.mark.parametrize(
    "wrong", [{"patients": 0}, {"size": 8}, {"slices": (9, 3)}, {"difficulty": 1.5}, {"difficulty": float("nan")}]
)
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError):
        PhantomSettings(**wrong)
