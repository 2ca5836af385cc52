"""DICOM series and NIfTI volumes: anatomical order, orientation as radiologists see it, Hounsfield units or a refusal."""

import itertools
import os
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from volume_files import CHEST, SIDE, shown, write_dicom, write_nifti, write_series

from raymed.data.image import ImageSettings
from raymed.data.sources import Listing, Refusal, SourceSettings, list_source, load_study
from raymed.errors import UserError

REAL = Path(os.environ.get("RAYMED_REAL_DATA", "/nonexistent"))
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="RAYMED_REAL_DATA is not set")
SETTINGS = ImageSettings(size=SIDE)


def pixels(listing: Listing, at: int = 0) -> np.ndarray:
    loaded = [result for _, result in load_study(listing.root, listing.studies[at], SETTINGS)]
    assert all(isinstance(result, np.ndarray) for result in loaded), loaded
    return np.stack(loaded)[..., 0]


def test_series_runs_from_feet_to_head_whatever_its_instance_numbers(tmp_path: Path) -> None:
    write_series(tmp_path)
    listing = list_source(tmp_path, SourceSettings(labelled=False))
    study = listing.studies[0]
    assert (listing.format, study.patient, study.study, study.label) == ("dicom", "MRN-1", "1.2.3", None)
    assert [piece.path for piece in study.slices] == [f"IM{number:04d}" for number in (5, 4, 3, 2, 1)]
    assert np.array_equal(pixels(listing), shown(CHEST))


def test_two_series_in_one_folder_are_two_studies(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", CHEST[0], 0, series="1.2.3")
    write_dicom(tmp_path / "b.dcm", CHEST[1], 0, series="1.2.4")
    assert [study.study for study in list_source(tmp_path, SourceSettings()).studies] == ["1.2.3", "1.2.4"]


def test_patients_are_named_by_their_folders_and_labelled_by_the_class_above(tmp_path: Path) -> None:
    write_dicom(tmp_path / "viral" / "P1" / "scan" / "a.dcm", CHEST[0], 0, series="1.1")
    write_dicom(tmp_path / "normal" / "P2" / "1.2.840.1", CHEST[0], 0, series="1.2", PatientID="MRN-2")
    (tmp_path / "normal" / "P2" / "readme.txt").write_text("x")
    listing = list_source(tmp_path, SourceSettings())
    assert [(study.patient, study.label) for study in listing.studies] == [("P1", "viral"), ("P2", "normal")]
    assert "readme.txt" in listing.notes[0]
    unlabelled = list_source(tmp_path / "viral", SourceSettings(labelled=False))
    assert [(study.patient, study.label) for study in unlabelled.studies] == [("MRN-1", None)]


def test_a_patient_without_a_name_is_an_error_and_so_is_one_series_of_two_patients(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", CHEST[0], 0, PatientID="")
    with pytest.raises(UserError, match=r"PatientID is empty"):
        list_source(tmp_path, SourceSettings())
    write_dicom(tmp_path / "two" / "viral" / "P1" / "a.dcm", CHEST[0], 0)
    write_dicom(tmp_path / "two" / "viral" / "P2" / "b.dcm", CHEST[0], 8)
    with pytest.raises(UserError, match=r"several patients: P1, P2"):
        list_source(tmp_path / "two", SourceSettings())


@pytest.mark.parametrize("name", ["a.dic", "a.CT", "a", "1.2.840.7", "a.0001"])
def test_a_file_with_the_mark_of_dicom_is_one_whatever_its_name_ends_in(tmp_path: Path, name: str) -> None:
    write_dicom(tmp_path / name, CHEST[0], 0)
    (tmp_path / "readme.doc").write_bytes(b"x" * 200)
    listing = list_source(tmp_path, SourceSettings(labelled=False))
    assert [piece.path for study in listing.studies for piece in study.slices] == [name]


@pytest.mark.parametrize("ids", ["agree", "header", "folder"])
def test_one_examination_without_a_patientid_is_of_one_patient_and_two_are_not_merged(tmp_path: Path, ids: str) -> None:
    settings = SourceSettings(labelled=False, patient_ids=ids)  # type: ignore[arg-type]
    folder = tmp_path / "scans" / "P1"
    write_dicom(folder / "lung" / "a.dcm", CHEST[0], 0, series="1.1", PatientID="", StudyInstanceUID="1.9")
    write_dicom(folder / "soft" / "b.dcm", CHEST[0], 0, series="1.2", PatientID="", StudyInstanceUID="1.9")
    for source in (tmp_path / "scans", folder / "lung"):
        name = {"scans": "P1", "lung": "lung"}[source.name]
        assert {study.patient for study in list_source(source, settings).studies} == {name}
    assert list_source(folder / "lung" / "a.dcm", settings).studies[0].patient == "a"
    write_dicom(folder / "lung" / "c.dcm", CHEST[0], 8, series="1.3", PatientID="", StudyInstanceUID="1.10")
    with pytest.raises(UserError, match="PatientID is empty"):
        list_source(tmp_path / "scans", settings)


def test_one_series_under_two_labels_shows_both(tmp_path: Path) -> None:
    write_dicom(tmp_path / "viral" / "P1" / "a.dcm", CHEST[0], 0)
    write_dicom(tmp_path / "normal" / "P1" / "b.dcm", CHEST[0], 8)
    assert [study.label for study in list_source(tmp_path, SourceSettings()).studies] == ["normal", "viral"]


def test_a_slice_in_a_class_folder_but_in_no_patients_is_an_error(tmp_path: Path) -> None:
    write_dicom(tmp_path / "viral" / "P1" / "a.dcm", CHEST[0], 0, series="1.1")
    write_dicom(tmp_path / "viral" / "b.dcm", CHEST[0], 0, series="1.2")
    with pytest.raises(UserError, match=r"viral/b\.dcm lie in one folder only"):
        list_source(tmp_path, SourceSettings())


def test_a_damaged_header_is_refused_with_the_patient_that_its_folder_names(tmp_path: Path) -> None:
    for patient in ("p1", "p2", "p3"):
        write_dicom(tmp_path / patient / "a.dcm", CHEST[0], 0, SeriesInstanceUID=f"1.2.{patient[1]}", PatientID=patient)
    damaged = tmp_path / "p2" / "a.dcm"
    content = damaged.read_bytes()
    number = content.index(b"\x20\x00\x13\x00IS") + 8  # InstanceNumber, as text
    damaged.write_bytes(content[:number] + b"x" + content[number + 1 :])
    listing = list_source(tmp_path, SourceSettings(labelled=False))
    assert [study.patient for study in listing.studies] == ["p1", "p3"]
    (refusal,) = listing.refusals
    assert (refusal.patient, refusal.where) == ("p2", "p2/a.dcm") and "damaged header" in refusal.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "not an axial slice"),
        ({"ImageOrientationPatient": [-1, 0, 0, 0, 1, 0]}, "stored the usual way"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0.9, 0.44]}, "not an axial slice"),
        ({"ImageOrientationPatient": None}, "orientation are unknown"),
        ({"ImagePositionPatient": None}, "order and orientation"),
        ({"Modality": "MR"}, "modality MR"),
        ({"SeriesInstanceUID": None}, "SeriesInstanceUID"),
        ({"NumberOfFrames": 3}, "3 frames"),
        ({"Rows": 20000, "Columns": 20000}, "megapixels"),
    ],
)
def test_slices_that_cannot_be_placed_are_refused(tmp_path: Path, changes: dict, reason: str) -> None:
    write_dicom(tmp_path / "good.dcm", CHEST[0], 0, ImageOrientationPatient=[1, 0, 0, 0, 0.95, 0.3])
    write_dicom(tmp_path / "bad.dcm", CHEST[1], 8, **changes)
    listing = list_source(tmp_path, SourceSettings())
    assert [piece.path for study in listing.studies for piece in study.slices] == ["good.dcm"]
    assert [refusal.id for refusal in listing.refusals] == ["bad.dcm"] and reason in listing.refusals[0].reason


@pytest.mark.parametrize("content", [b"", b"x" * 500, b"\0" * 128 + b"DICM" + b"\xff" * 40])
def test_files_that_are_no_dicom_are_refused(tmp_path: Path, content: bytes) -> None:
    write_dicom(tmp_path / "good.dcm", CHEST[0], 0)
    (tmp_path / "bad.dcm").write_bytes(content)
    assert [refusal.id for refusal in list_source(tmp_path, SourceSettings()).refusals] == ["bad.dcm"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"RescaleSlope": None}, "Hounsfield"),
        ({"RescaleType": "OD"}, "values are in OD"),
        ({"PixelData": b"\0" * 10}, "cannot be decoded"),
    ],
)
def test_pixels_without_units_or_cut_short_are_refused_when_loaded(tmp_path: Path, changes: dict, reason: str) -> None:
    write_dicom(tmp_path / "bad.dcm", CHEST[0], 0, **changes)
    listing = list_source(tmp_path, SourceSettings())
    result = load_study(listing.root, listing.studies[0], SETTINGS)[0][1]
    assert isinstance(result, Refusal) and reason in result.reason and result.patient == "MRN-1"


def test_hounsfield_units_are_shown_alike_whatever_the_file_says_of_grey(tmp_path: Path) -> None:
    """Air was white in CT whose file said MONOCHROME1."""
    write_series(tmp_path, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(pixels(list_source(tmp_path, SourceSettings())), shown(CHEST))


ORIENTATIONS = [
    "".join(pair[bit] for pair, bit in zip(pairs, bits, strict=True))
    for pairs in itertools.permutations(("RL", "AP", "IS"))
    for bits in itertools.product((0, 1), repeat=3)
]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_volume_is_shown_the_same_however_it_is_stored(tmp_path: Path, codes: str) -> None:
    listing = list_source(write_nifti(tmp_path / "P1.nii", codes), SourceSettings())
    assert np.array_equal(pixels(listing), shown(CHEST))


def test_scaled_volume_in_a_gzip_and_one_of_floats_with_nan(tmp_path: Path) -> None:
    listing = list_source(write_nifti(tmp_path / "P1.nii.gz"), SourceSettings())
    assert [study.patient for study in listing.studies] == ["P1"] and np.array_equal(pixels(listing), shown(CHEST))
    holes = CHEST.astype(np.float32)
    holes[3, 5, 5] = np.nan
    listing = list_source(write_nifti(tmp_path / "P2.nii", hu=holes), SourceSettings())
    reasons = {
        piece.frame: result.reason
        for piece, result in load_study(tmp_path, listing.studies[0], SETTINGS)
        if isinstance(result, Refusal)
    }
    assert reasons == {3: "NaN or infinite values"}


def test_volumes_are_named_by_folder_and_file(tmp_path: Path) -> None:
    write_nifti(tmp_path / "viral" / "P1" / "scan.nii.gz")
    write_nifti(tmp_path / "normal" / "P2.nii")
    found = [(s.patient, s.study, s.label) for s in list_source(tmp_path, SourceSettings()).studies]
    assert found == [("P1", "viral/P1/scan.nii.gz", "viral"), ("P2", "normal/P2.nii", "normal")]
    found = [(s.patient, s.label) for s in list_source(tmp_path / "viral", SourceSettings(labelled=False)).studies]
    assert found == [("P1", None)]


def nifti_without_affine(path: Path) -> None:
    volume = nibabel.Nifti1Image(CHEST, None)
    volume.header["sform_code"] = volume.header["qform_code"] = 0
    nibabel.save(volume, path)


def nifti_tilted(path: Path) -> None:
    angle = np.radians(30)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    nibabel.save(nibabel.Nifti1Image(CHEST, affine), path)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (nifti_without_affine, "no valid sform"),
        (nifti_tilted, "tilted"),
        (lambda path: write_nifti(path, "ASL", (1, 2, 3)), "not square"),
        (
            lambda path: nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)), path),
            "single volumes",
        ),
        (lambda path: path.write_bytes(b"no nifti"), "not a readable NIfTI"),
        (lambda path: path.write_bytes(b""), "not a readable NIfTI"),
    ],
)
def test_volumes_that_cannot_be_shown_rightly_are_refused(tmp_path: Path, write: object, reason: str) -> None:
    write_nifti(tmp_path / "good.nii")
    write(tmp_path / "bad.nii")  # type: ignore[operator]
    listing = list_source(tmp_path, SourceSettings())
    assert [study.patient for study in listing.studies] == ["good"]
    assert [refusal.patient for refusal in listing.refusals] == ["bad"] and reason in listing.refusals[0].reason


def test_values_that_are_not_hounsfield_units_and_cut_files_are_refused_when_loaded(tmp_path: Path) -> None:
    write_nifti(tmp_path / "grey.nii", hu=shown(CHEST).astype(np.int16))
    cut = write_nifti(tmp_path / "zcut.nii.gz", hu=np.repeat(CHEST, 20, axis=0))
    cut.write_bytes(cut.read_bytes()[:-2000])
    listing = list_source(tmp_path, SourceSettings())
    for study, reason in zip(listing.studies, ("Hounsfield", "truncated"), strict=True):
        results = [result for _, result in load_study(tmp_path, study, SETTINGS)]
        assert len(results) == len(study.slices)
        assert all(isinstance(result, Refusal) and reason in result.reason for result in results)


def test_a_folder_with_two_formats_is_not_guessed_about(tmp_path: Path) -> None:
    write_nifti(tmp_path / "viral" / "P1.nii")
    write_dicom(tmp_path / "viral" / "P2" / "a.dcm", CHEST[0], 0)
    with pytest.raises(UserError, match=r"--source\.format"):
        list_source(tmp_path, SourceSettings())
    assert list_source(tmp_path, SourceSettings(format="dicom")).studies[0].patient == "P2"


@pytest.mark.real
@needs_real
def test_real_series_equals_the_pictures_of_the_same_patient_slice_by_slice() -> None:
    series = list_source(REAL / "volumes" / "dicom_ctmd_P001", SourceSettings(labelled=False))
    pictures = list_source(REAL / "lung_ct", SourceSettings())
    same = next(study for study in pictures.studies if study.patient == series.studies[0].patient)
    settings = ImageSettings(size=512)
    pairs = zip(load_study(series.root, series.studies[0], settings), load_study(pictures.root, same, settings), strict=True)
    for (dicom, left), (png, right) in pairs:
        assert Path(dicom.path).stem == Path(png.path).stem.removeprefix("P001_")
        assert isinstance(left, np.ndarray) and isinstance(right, np.ndarray)
        assert np.abs(left.astype(int) - right).max() <= 1


@pytest.mark.real
@needs_real
def test_real_volume_is_upright_with_the_spine_at_the_back_and_the_head_last() -> None:
    listing = list_source(REAL / "volumes" / "totalseg_example_ct.nii.gz", SourceSettings(labelled=False))
    slices = np.stack([result for _, result in load_study(listing.root, listing.studies[0], ImageSettings(128))])[..., 0]
    assert len(slices) == 112
    bone = np.stack([r for _, r in load_study(listing.root, listing.studies[0], ImageSettings(128, window="600,600"))])[
        ..., 0
    ]
    rows = (bone > 60).sum(axis=(0, 2))
    assert rows[64:].sum() > rows[:64].sum()
    lung = (slices > 40) & (slices < 110)
    inside = lung[:, 40:90, 30:98].sum(axis=(1, 2))
    assert inside[56:].sum() > inside[:56].sum()  # bowel and lung bases lie above the pelvis


def test_header_fields_other_than_the_patient_do_not_leave_the_reader(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", CHEST[0], 0, PatientName="Doe^Jane", PatientBirthDate="19700101")
    assert pydicom.dcmread(tmp_path / "a.dcm").PatientName == "Doe^Jane"
    assert "Doe" not in repr(list_source(tmp_path, SourceSettings()))
