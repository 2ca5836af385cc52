"""NIfTI volumes that do not say where left, front and head are, or say it twice; folders that are no patients."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from volume_files import CHEST, SIDE, shown, write_nifti

from raymed.data.image import ImageSettings
from raymed.data.sources import Listing, SourceSettings, list_source, load_study
from raymed.errors import UserError

DISPLAYED = np.transpose(CHEST, (2, 1, 0))  # columns to the left, rows to the back, slices to the head: LPS


def source(orientation: str | None = None, patient_regex: str | None = None) -> SourceSettings:
    return SourceSettings(labelled=False, orientation=orientation, patient_regex=patient_regex)


def pixels(listing: Listing) -> np.ndarray:
    loaded = [result for _, result in load_study(listing.root, listing.studies[0], ImageSettings(size=SIDE))]
    assert all(isinstance(result, np.ndarray) for result in loaded), loaded
    return np.stack(loaded)[..., 0]


def unset(path: Path, code: int) -> Path:
    """A volume stored z, y, x, with the affine that nobody set."""
    volume = nibabel.Nifti1Image(CHEST, np.eye(4))
    volume.set_sform(np.eye(4), code)
    volume.set_qform(np.eye(4), code)
    nibabel.save(volume, path)
    return path


@pytest.mark.parametrize("code", [0, 1, 2])
def test_an_affine_that_nobody_set_is_refused_unless_the_orientation_is_said(tmp_path: Path, code: int) -> None:
    path = unset(tmp_path / "P1.nii", code)
    with pytest.raises(UserError, match=r"identity.*--source\.orientation"):
        list_source(path, source())
    assert np.array_equal(pixels(list_source(path, source("SPL"))), shown(CHEST))
    assert np.array_equal(pixels(list_source(path, source("IPL"))), shown(CHEST)[::-1])


def test_the_orientation_that_is_said_changes_no_volume_that_says_its_own(tmp_path: Path) -> None:
    assert np.array_equal(pixels(list_source(write_nifti(tmp_path / "P1.nii", "RAS"), source("SPL"))), shown(CHEST))


def test_another_orientation_is_other_data(tmp_path: Path) -> None:
    path = unset(tmp_path / "P1.nii", 1)
    prints = {list_source(path, source(orientation)).studies[0].fingerprint for orientation in ("SPL", "SPR")}
    assert len(prints) == 2, "prepare would keep what it read under the other orientation"


def test_sform_and_qform_that_disagree_are_refused_unless_one_is_chosen(tmp_path: Path) -> None:
    left, right = np.diag([-1.0, -1.0, 3.0, 1.0]), np.diag([1.0, -1.0, 3.0, 1.0])
    volume = nibabel.Nifti1Image(DISPLAYED, left)
    volume.set_sform(left, 1)
    volume.set_qform(right, 1)
    nibabel.save(volume, tmp_path / "P1.nii")
    with pytest.raises(UserError, match=r"sform says LPS and qform RPS.*--source\.orientation sform"):
        list_source(tmp_path / "P1.nii", source())
    assert np.array_equal(pixels(list_source(tmp_path / "P1.nii", source("sform"))), shown(CHEST))
    assert np.array_equal(pixels(list_source(tmp_path / "P1.nii", source("qform"))), shown(CHEST)[:, :, ::-1])
    assert np.array_equal(pixels(list_source(tmp_path / "P1.nii", source("LPS"))), shown(CHEST))


@pytest.mark.parametrize("orientation", ["LP", "LRS", "XYZ", "left"])
def test_an_orientation_that_is_none_is_an_error(orientation: str) -> None:
    with pytest.raises(UserError, match="give sform, qform, or three letters"):
        source(orientation)


def test_a_folder_of_many_patients_is_not_one_patient(tmp_path: Path) -> None:
    for number in range(3):
        write_nifti(tmp_path / "imagesTr" / f"case_{number}.nii.gz")
    with pytest.raises(UserError, match=r"3 volumes lie in the folder 'imagesTr'.*--source\.patient-regex"):
        list_source(tmp_path, source())
    each = list_source(tmp_path, source(patient_regex="([^/]+)[.]nii"))
    assert [study.patient for study in each.studies] == ["case_0", "case_1", "case_2"]
    one = list_source(tmp_path, source(patient_regex="([^/]+)/[^/]+$"))
    assert {study.patient for study in one.studies} == {"imagesTr"}
    (tmp_path / "imagesTr").rename(tmp_path / "anna")
    assert {study.patient for study in list_source(tmp_path, source()).studies} == {"anna"}


def test_geometry_is_kept_where_it_is_told(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "P1.nii", "ASL", spacing=(0.7, 0.7, 3))
    geometry = list_source(path, source()).studies[0].slices[0].geometry
    values = (geometry.pixel_spacing, geometry.slice_thickness, geometry.field_of_view)
    assert values == pytest.approx((0.7, 3, 0.7 * SIDE))
    untold = list_source(unset(tmp_path / "P2.nii", 0), source("SPL")).studies[0].slices[0].geometry
    assert untold.pixel_spacing is None
