"""DICOM headers and series: what is shown, left out or refused, and in which order, whichever way the files come in."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from volume_files import CHEST, SIDE, shown, write_dicom, write_series

from raymed.data.image import ImageError, ImageSettings
from raymed.data.sources import Listing, Refusal, SourceSettings, list_source, load_study, read_whole
from raymed.errors import UserError

SETTINGS = ImageSettings(size=SIDE)
UNLABELLED = SourceSettings(labelled=False)


def pixels(listing: Listing, at: int = 0) -> np.ndarray:
    loaded = [result for _, result in load_study(listing.root, listing.studies[at], SETTINGS)]
    assert all(isinstance(result, np.ndarray) for result in loaded), loaded
    return np.stack(loaded)[..., 0]


def as_csv(folder: Path, header: str = "image,patient_id", row: str = "{},P1") -> Path:
    names = sorted(path.name for path in folder.iterdir())
    path = folder / "list.csv"
    path.write_text("\n".join([header, *(row.format(name) for name in names)]))
    return path


def as_jsonl(folder: Path) -> Path:
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "Seen."}]
    lines = [{"image": path.name, "patient_id": "P1", "conversations": turns} for path in sorted(folder.iterdir())]
    path = folder / "lines.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


@pytest.mark.parametrize("name", [lambda folder: folder, as_csv, as_jsonl])
def test_a_series_is_in_the_order_of_its_positions_whichever_way_it_comes_in(tmp_path: Path, name) -> None:
    write_series(tmp_path / "in")
    write_dicom(tmp_path / "in" / "scout.dcm", CHEST[0], 0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_dicom(tmp_path / "in" / "mirrored.dcm", CHEST[0], 3, ImageOrientationPatient=[-1, 0, 0, 0, 1, 0])
    listing = list_source(name(tmp_path / "in"), UNLABELLED)
    assert np.array_equal(pixels(listing), shown(CHEST))
    refused = {Path(refusal.id).name: refusal for refusal in listing.refusals}
    assert refused["scout.dcm"].expected and "localizer" in refused["scout.dcm"].reason
    assert not refused["mirrored.dcm"].expected and "stored the usual way" in refused["mirrored.dcm"].reason


def test_a_position_in_a_csv_orders_its_slices(tmp_path: Path) -> None:
    write_series(tmp_path)
    listing = list_source(as_csv(tmp_path, "image,patient_id,position", "{0},P1,1"), UNLABELLED)
    assert np.array_equal(pixels(listing), shown(CHEST)), "one position for all leaves the order to the headers"
    rows = [f"IM000{number},P1,{number}" for number in range(1, 6)]
    (tmp_path / "list.csv").write_text("\n".join(["image,patient_id,position", *rows]))
    assert np.array_equal(pixels(list_source(tmp_path / "list.csv", UNLABELLED)), shown(CHEST)[::-1])


def test_a_csv_of_two_series_is_two_studies_and_one_series_of_two_patients_an_error(tmp_path: Path) -> None:
    for series in ("1.2.3", "1.2.4"):
        for at, height in enumerate((0, 8)):
            write_dicom(tmp_path / f"{series}-{at}.dcm", CHEST[at], height, series=series)
    listing = list_source(as_csv(tmp_path), UNLABELLED)
    assert [(study.study, len(study.slices)) for study in listing.studies] == [("P1/1.2.3", 2), ("P1/1.2.4", 2)]
    with pytest.raises(UserError, match="one series is of several patients"):
        list_source(as_csv(tmp_path, row="{0},{0}"), UNLABELLED)


@pytest.mark.parametrize(
    ("changes", "reason", "expected"),
    [
        ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation YES", False),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "screen save", True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary capture", True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4"}, "secondary capture", True),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR pixels", False),
        ({"PixelSpacing": [1.4, 0.7]}, "not square", False),
        ({"PixelAspectRatio": [2, 1]}, "not square", False),
        ({"Modality": "MR"}, "modality MR", False),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "computed from other images", True),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 MPR"]}, "computed from other images", True),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, "computed from other images", True),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer", True),
        ({"Modality": "SR", "Rows": None, "Columns": None, "PixelData": None}, "document", True),
        ({"Modality": None, "Rows": None, "Columns": None, "PixelData": None}, "file that was cut short", False),
    ],
)
def test_a_file_that_is_no_slice_is_refused_or_left_out_alone_and_in_a_series(
    tmp_path: Path, changes: dict, reason: str, expected: bool
) -> None:
    write_dicom(tmp_path / "good.dcm", CHEST[0], 0)
    write_dicom(tmp_path / "bad.dcm", CHEST[1], 8, **changes)
    listing = list_source(tmp_path, UNLABELLED)
    assert [piece.path for study in listing.studies for piece in study.slices] == ["good.dcm"]
    (refusal,) = listing.refusals
    assert reason in refusal.reason and refusal.expected == expected
    with pytest.raises(ImageError, match=reason):
        read_whole(tmp_path / "bad.dcm", SETTINGS)


@pytest.mark.parametrize("kind", [["DERIVED", "SECONDARY", "MPR"], ["ORIGINAL", "PRIMARY", "LOCALIZER"]])
def test_derived_images_are_taken_where_they_are_asked_for(tmp_path: Path, kind: list[str]) -> None:
    write_series(tmp_path, ImageType=kind)
    with pytest.raises(UserError, match=r"--source\.derived true"):
        list_source(tmp_path, UNLABELLED)
    assert np.array_equal(pixels(list_source(tmp_path, SourceSettings(labelled=False, derived=True))), shown(CHEST))


def test_a_lossy_slice_is_derived_and_no_reformat(tmp_path: Path) -> None:
    write_series(tmp_path, ImageType=["DERIVED", "PRIMARY", "AXIAL"])
    assert np.array_equal(pixels(list_source(tmp_path, UNLABELLED)), shown(CHEST))


def test_a_prone_patient_is_turned_by_exactly_half_a_turn(tmp_path: Path) -> None:
    for at, plane in enumerate(CHEST):
        write_dicom(tmp_path / f"{at}.dcm", plane[::-1, ::-1], 8.0 * at, ImageOrientationPatient=[-1, 0, 0, 0, -1, 0])
    assert np.array_equal(pixels(list_source(tmp_path, UNLABELLED)), shown(CHEST))


def test_images_at_one_height_are_no_volume(tmp_path: Path) -> None:
    write_series(tmp_path / "chest")
    for number in range(6):
        write_dicom(
            tmp_path / "bolus" / f"{number}.dcm",
            CHEST[0] + number,
            40,
            number,
            "1.9",
            AcquisitionNumber=number,
            PatientID="2",
        )
    listing = list_source(tmp_path, SourceSettings(labelled=False, patient_regex="(.*)/"))
    assert [study.patient for study in listing.studies] == ["chest"]
    assert {refusal.reason for refusal in listing.refusals} == {
        "one of 6 images at one height, as while contrast medium is awaited: no volume"
    }
    assert all(refusal.expected for refusal in listing.refusals)


def test_copies_are_taken_once(tmp_path: Path) -> None:
    write_series(tmp_path)
    (tmp_path / "again").write_bytes((tmp_path / "IM0003").read_bytes())
    write_dicom(tmp_path / "other-uid", CHEST[1], -300 + 8.0)
    listing = list_source(tmp_path, UNLABELLED)
    assert np.array_equal(pixels(listing), shown(CHEST))
    assert [refusal.expected for refusal in listing.refusals] == [True, True]


def test_a_copied_identifier_elsewhere_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path)
    uid = pydicom.dcmread(tmp_path / "IM0003").SOPInstanceUID
    write_dicom(tmp_path / "zz", CHEST[0], 100, SOPInstanceUID=uid)
    (refusal,) = list_source(tmp_path, UNLABELLED).refusals
    assert refusal.id == "zz" and "SOPInstanceUID of another" in refusal.reason and not refusal.expected


def test_two_kernels_in_one_series_are_studies_of_their_own_as_two_series_would_be(tmp_path: Path) -> None:
    """All slices were refused: 'nothing tells phases apart'."""
    for kernel, shift in (("B31f", 0), ("B70f", 10)):
        for at, plane in enumerate(CHEST):
            write_dicom(tmp_path / f"{kernel}-{at}", plane + shift, 8.0 * at, at, ConvolutionKernel=kernel)
    listing = list_source(tmp_path, SourceSettings(labelled=False))
    assert [(study.study, len(study.slices)) for study in listing.studies] == [("1.2.3/phase-1", 5), ("1.2.3/phase-2", 5)]
    assert not listing.refusals
    for study in listing.studies:
        kernels = {Path(piece.path).name.split("-")[0] for piece in study.slices}
        assert len(kernels) == 1, "a study of both would show lungs sharp and soft in turns"


def test_phases_are_studies_of_their_own(tmp_path: Path) -> None:
    for phase in (1, 2):
        for at, plane in enumerate(CHEST):
            write_dicom(tmp_path / f"{phase}-{at}", plane + 10 * phase, 8.0 * at, at, AcquisitionNumber=phase)
    listing = list_source(tmp_path, UNLABELLED)
    assert [(study.study, len(study.slices)) for study in listing.studies] == [("1.2.3/phase-1", 5), ("1.2.3/phase-2", 5)]
    assert np.array_equal(pixels(listing, 1), shown(CHEST + 20))
    (tmp_path / "copy").write_bytes((tmp_path / "1-3").read_bytes().replace(b"1.2.826", b"1.2.827"))
    assert [len(study.slices) for study in list_source(tmp_path, UNLABELLED).studies] == [5, 5]
    (tmp_path / "copy").unlink()
    (tmp_path / "2-0").unlink()
    assert [len(study.slices) for study in list_source(tmp_path, UNLABELLED).studies] == [5, 4]
    listing = list_source(as_csv(tmp_path), UNLABELLED)
    assert [study.study for study in listing.studies] == ["P1/1.2.3/phase-1", "P1/1.2.3/phase-2"]


def test_two_images_at_one_height_are_refused_and_their_neighbours_survive(tmp_path: Path) -> None:
    write_series(tmp_path)
    write_dicom(tmp_path / "extra", CHEST[1] + 5, -300 + 8.0)
    listing = list_source(tmp_path, UNLABELLED)
    assert len(listing.studies[0].slices) == len(CHEST) - 1
    assert {refusal.id for refusal in listing.refusals} == {"IM0004", "extra"}
    assert all("one of 2 images at one height" in refusal.reason and "CSV" in refusal.reason for refusal in listing.refusals)


def test_a_gap_in_a_series_is_told(tmp_path: Path) -> None:
    write_series(tmp_path)
    assert not list_source(tmp_path, UNLABELLED).notes
    (tmp_path / "IM0003").unlink()
    (note,) = list_source(tmp_path, UNLABELLED).notes
    assert note == "1 gaps in series: 16.0 mm between IM0004 and IM0002, usually 8.0 mm"


def test_a_file_without_its_header_is_refused_in_words_that_help(tmp_path: Path) -> None:
    write_series(tmp_path)
    (tmp_path / "bare.dcm").write_bytes((tmp_path / "IM0003").read_bytes()[132:])
    (refusal,) = list_source(tmp_path, UNLABELLED).refusals
    assert "no mark DICM" in refusal.reason and "file header" in refusal.reason


def test_geometry_is_kept(tmp_path: Path) -> None:
    write_series(tmp_path, PixelSpacing=[0.5, 0.5], SliceThickness=2)
    geometry = list_source(tmp_path, UNLABELLED).studies[0].slices[0].geometry
    assert (geometry.pixel_spacing, geometry.slice_thickness, geometry.field_of_view) == (0.5, 2.0, 0.5 * SIDE)


def test_refused_slices_of_a_loaded_series_are_named(tmp_path: Path) -> None:
    write_series(tmp_path)
    write_dicom(tmp_path / "IM0003", CHEST[2], -300 + 16.0, 3, PixelData=b"\0" * 10)
    listing = list_source(tmp_path, UNLABELLED)
    loaded = load_study(listing.root, listing.studies[0], SETTINGS)
    assert [isinstance(result, Refusal) for _, result in loaded] == [False, False, True, False, False]


@pytest.mark.slow
def test_headers_of_others_are_read_without_a_word_that_frightens(tmp_path: Path) -> None:
    write_series(tmp_path)
    content = (tmp_path / "IM0003").read_bytes()
    place = content.index(b"\x20\x00\x13\x00IS") + 8  # InstanceNumber, as text
    (tmp_path / "damaged.dcm").write_bytes(content[:place] + b"x" + content[place + 1 :])
    command = [sys.executable, "-c", "import sys; from pathlib import Path; from raymed.data.sources import *\n"]
    command[2] += "print(len(list_source(Path(sys.argv[1]), SourceSettings(labelled=False)).refusals))"
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize("start", range(0, 500, 25))
def test_bytes_damaged_anywhere_in_a_header_are_a_refusal_and_no_traceback(tmp_path: Path, start: int) -> None:
    write_series(tmp_path)
    content = bytearray((tmp_path / "IM0003").read_bytes())
    content[132 + start : 132 + start + 8] = bytes(np.random.default_rng(start).integers(0, 256, 8, np.uint8))
    (tmp_path / "IM0003").write_bytes(content)
    listing = list_source(tmp_path, SourceSettings(labelled=False, patient_ids="folder", patient_regex="(I)"))
    for study in listing.studies:
        load_study(listing.root, study, SETTINGS)
    assert sum(len(study.slices) for study in listing.studies) + len(listing.refusals) == len(CHEST)


def test_no_reason_names_a_file_because_it_is_kept_under_pseudonyms(tmp_path: Path) -> None:
    folder = tmp_path / "Doe-Jane"
    write_series(folder)
    uid = pydicom.dcmread(folder / "IM0003").SOPInstanceUID
    write_dicom(folder / "elsewhere", CHEST[0], 100, SOPInstanceUID=uid)
    (folder / "copy").write_bytes((folder / "IM0002").read_bytes())
    write_dicom(folder / "same-pixels", CHEST[1], -300 + 8.0)
    write_dicom(folder / "other-pixels", CHEST[4] + 5, -300 + 8.0 * 4)
    write_dicom(folder / "scout", CHEST[0], 0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (folder / "bare.dcm").write_bytes(b"x" * 200)
    reasons = [refusal.reason for refusal in list_source(tmp_path, UNLABELLED).refusals]
    assert len(reasons) == 7 and not [reason for reason in reasons if "Doe" in reason or "IM00" in reason]


@pytest.mark.parametrize("patient_ids", ["agree", "header"])
def test_one_person_under_two_names_of_a_csv_is_an_error(tmp_path: Path, patient_ids) -> None:
    for patient in ("P1", "P2"):
        write_dicom(tmp_path / f"{patient}.dcm", CHEST[0], 0, series=f"1.{patient[1]}")
    path = as_csv(tmp_path, row="{0},{0}")
    with pytest.raises(UserError, match=r"one person by their PatientID: P1\.dcm and P2\.dcm"):
        list_source(path, SourceSettings(labelled=False, patient_ids=patient_ids))
    assert len(list_source(path, SourceSettings(labelled=False, patient_ids="folder")).studies) == 2
