"""Every patient who was named is heard of again, and a patient is one person."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file

from raymed.data.sources import Listing, SourceSettings, list_source
from raymed.data.sources.patients import Person, require_persons
from raymed.errors import UserError

UNLABELLED = SourceSettings(labelled=False)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(path)


def ct(path: Path, person: str, birth: str = "", sex: str = "", **changes: object) -> None:
    """pydicom's small CT as an axial slice of a person, in a series of that file's folder."""
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = person, birth, sex
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.SeriesInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(path.parent)])
    for name, value in changes.items():
        setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path)


def named(listing: Listing) -> dict[str, str]:
    """What became of each patient: used, or why not."""
    refused = {refusal.patient: refusal.reason for refusal in listing.refusals if refusal.patient}
    return refused | {study.patient: "used" for study in listing.studies}


@pytest.mark.parametrize("labelled", [False, True])
def test_a_folder_of_patients_loses_nobody(tmp_path: Path, labelled: bool) -> None:
    source = tmp_path / "source"
    root = source / "viral" if labelled else source
    picture(root / "anna" / "a.png")
    picture(root / "berta" / "a.gif")
    (root / "carla").mkdir()
    (root / "dora").mkdir()
    (root / "dora" / "scan.jp2").write_bytes(b"\0\0\0\x0cjP  ")
    picture(tmp_path / "elsewhere" / "a.png")
    (root / "eva").symlink_to(tmp_path / "elsewhere")
    (root / "frida").symlink_to(tmp_path / "nowhere")
    listing = list_source(source, SourceSettings(labelled=labelled))
    assert named(listing) == {
        "anna": "used",
        "berta": "none of the files in the folder (1) is a picture",
        "carla": "an empty folder",
        "dora": "none of the files in the folder (1) is a picture",
        "eva": "a symbolic link to a folder, which is not followed: put the folder itself there",
        "frida": "a symbolic link that leads nowhere",
    }


def test_a_patient_of_whom_a_regular_expression_finds_no_picture_is_named(tmp_path: Path) -> None:
    for name in ("viral/p1_1.png", "viral/p2_1.gif", "viral/p2_2.gif"):
        picture(tmp_path / name)
    listing = list_source(tmp_path, SourceSettings(patient_regex=r"(p\d)_"))
    assert named(listing) == {"p1": "used", "p2": "none of the patient's files (2) is a picture"}


def test_a_good_series_is_of_its_folder_however_bad_the_others_are(tmp_path: Path) -> None:
    ct(tmp_path / "anna" / "1.dcm", "MRN-1")
    ct(tmp_path / "berta" / "1.dcm", "MRN-2", ImageOrientationPatient=[-1, 0, 0, 0, -1, 0])
    ct(tmp_path / "carla" / "1.dcm", "MRN-3", Modality="MR")
    (tmp_path / "dora").mkdir()
    content = (tmp_path / "anna" / "1.dcm").read_bytes()
    (tmp_path / "dora" / "1").write_bytes(content[132:])  # no preamble, and no extension
    (tmp_path / "eva").mkdir()
    (tmp_path / "eva" / "1.dcm").write_bytes(content[:200])
    outcome = named(list_source(tmp_path, UNLABELLED))
    assert outcome.pop("anna") == "used"
    assert outcome.keys() == {"berta", "carla", "dora", "eva"}
    assert "DICOM" in outcome["dora"]


def test_a_patient_without_a_volume_is_named(tmp_path: Path) -> None:
    for patient in ("anna", "berta"):
        (tmp_path / patient).mkdir()
    volume = nibabel.Nifti1Image(np.full((6, 6, 3), -900, np.int16), np.diag([-1.0, -1.0, 2.0, 1.0]))
    nibabel.save(volume, tmp_path / "anna" / "ct.nii.gz")
    (tmp_path / "berta" / "ct.nrrd").write_bytes(b"NRRD0004")
    assert named(list_source(tmp_path, UNLABELLED)) == {
        "anna": "used",
        "berta": "none of the files in the folder (1) is a NIfTI volume",
    }


def test_a_person_in_the_folders_of_two_patients_is_an_error_that_names_both(tmp_path: Path) -> None:
    ct(tmp_path / "viral" / "2021-03" / "1.dcm", "MRN-77")
    ct(tmp_path / "viral" / "2022-08" / "1.dcm", "MRN-77")
    ct(tmp_path / "normal" / "2021-03b" / "1.dcm", "MRN-78")
    with pytest.raises(UserError, match=r"one person by their PatientID: 2021-03 and 2022-08\.") as caught:
        list_source(tmp_path, SourceSettings())
    assert "MRN-7" not in str(caught.value), "an id may have to stay in its file"
    by_header = list_source(tmp_path, SourceSettings(patient_ids="header"))
    assert [(study.patient, study.label) for study in by_header.studies] == [
        ("MRN-77", "viral"),
        ("MRN-77", "viral"),
        ("MRN-78", "normal"),
    ]
    by_folder = list_source(tmp_path, SourceSettings(patient_ids="folder"))
    assert {study.patient for study in by_folder.studies} == {"2021-03", "2022-08", "2021-03b"}


PERSONS = st.builds(Person, *(st.sampled_from(["", *said]) for said in ("AB", "12", "FM")))


@given(st.lists(PERSONS, max_size=6))
def test_patients_who_may_be_one_person_are_found_without_comparing_each_with_each(persons: list[Person]) -> None:
    """Exports whose PatientIDs all say ANON have a hundred million pairs."""
    paths = {f"{place}.dcm": person for place, person in enumerate(persons)}
    pairs = itertools.combinations([person for person in persons if person.patient_id], 2)
    one_person = any(one.patient_id == other.patient_id and one.may_be(other) for one, other in pairs)
    with pytest.raises(UserError, match="one person by their PatientID") if one_person else nullcontext():
        require_persons(Path("export"), {path: path for path in paths}, paths)


@pytest.mark.parametrize(
    ("first", "second"),
    [(("A", "", ""), ("B", "", "")), (("A", "19500101", "F"), ("A", "19710203", "F")), (("A", "", "F"), ("A", "", "M"))],
)
def test_two_persons_in_one_folder_are_an_error_that_names_their_files(
    tmp_path: Path, first: tuple[str, str, str], second: tuple[str, str, str]
) -> None:
    ct(tmp_path / "anna" / "a" / "1.dcm", *first)
    ct(tmp_path / "anna" / "b" / "1.dcm", *second)
    ct(tmp_path / "berta" / "1.dcm", "C")
    with pytest.raises(UserError, match=r"1 patients have files of several persons.*anna: anna/a/1\.dcm and anna/b/1\.dcm"):
        list_source(tmp_path, UNLABELLED)
    assert len(list_source(tmp_path, SourceSettings(labelled=False, patient_ids="folder")).studies) == 3


def test_what_a_header_does_not_say_tells_nobody_apart(tmp_path: Path) -> None:
    ct(tmp_path / "anna" / "a" / "1.dcm", "A", "19500101", "F")
    ct(tmp_path / "anna" / "b" / "1.dcm", "A")
    ct(tmp_path / "anna" / "c" / "1.dcm", "")
    ct(tmp_path / "berta" / "1.dcm", "")
    ct(tmp_path / "carla" / "1.dcm", "")
    assert {study.patient for study in list_source(tmp_path, UNLABELLED).studies} == {"anna", "berta", "carla"}


def test_equal_ids_of_people_born_on_other_days_are_two_hospitals_and_no_error(tmp_path: Path) -> None:
    ct(tmp_path / "anna" / "1.dcm", "1", "19500101", "F")
    ct(tmp_path / "berta" / "1.dcm", "1", "19710203", "F")
    assert {study.patient for study in list_source(tmp_path, UNLABELLED).studies} == {"anna", "berta"}


def test_refused_files_of_a_folder_are_of_the_person_whose_others_are_used(tmp_path: Path) -> None:
    ct(tmp_path / "anna" / "1.dcm", "MRN-1")
    (tmp_path / "anna" / "2.dcm").write_bytes(b"")
    ct(tmp_path / "berta" / "1.dcm", "MRN-2")
    listing = list_source(tmp_path, SourceSettings(labelled=False, patient_ids="header"))
    assert [(refusal.where, refusal.patient) for refusal in listing.refusals] == [("anna/2.dcm", "MRN-1")]


def test_class_folders_without_patients_are_refused_not_taken_for_two_patients(tmp_path: Path) -> None:
    for at in range(3):
        for label in ("normal", "viral"):
            ct(tmp_path / label / f"p{at}{label[0]}_1.dcm", f"{label}-{at}", SeriesInstanceUID=pydicom.uid.generate_uid())
    with pytest.raises(UserError, match=r"expected <class>/<patient>/files.*--source\.labelled false"):
        list_source(tmp_path, SourceSettings())
    named_by_file = list_source(tmp_path, SourceSettings(patient_regex=r"(p\d.)_"))
    assert [(study.patient, study.label) for study in named_by_file.studies[:2]] == [("p0n", "normal"), ("p0v", "viral")]


TOLD = SourceSettings(labelled=False, patient_ids="tell")  # as predictions read


def test_doubts_whose_files_they_are_cost_a_prediction_nobody_elses_line(tmp_path: Path) -> None:
    ct(tmp_path / "anna" / "1.dcm", "MRN-1")
    ct(tmp_path / "anna-again" / "1.dcm", "MRN-1")
    ct(tmp_path / "berta" / "a" / "1.dcm", "MRN-2")
    ct(tmp_path / "berta" / "b" / "1.dcm", "MRN-3")
    ct(tmp_path / "carla" / "1.dcm", "MRN-4")
    listing = list_source(tmp_path, TOLD, usable=False)
    used = dict.fromkeys(("anna", "anna-again", "carla"), "used")
    assert named(listing) == used | {"berta": "lies with files of another person"}
    assert listing.about.keys() == {"anna", "anna-again", "berta"}
    assert "the same person as anna-again" in listing.about["anna"][0]
    assert "the same person as anna," in listing.about["anna-again"][0]
    assert "several persons" in listing.about["berta"][0] and "berta/a/1.dcm and berta/b/1.dcm" in listing.about["berta"][0]
    assert listing.notes[-1].startswith("3 patients are not one person each") and "MRN" not in str(listing.about)


def test_a_copied_series_in_two_folders_is_told_of_both_patients(tmp_path: Path) -> None:
    for patient in ("anna", "berta"):
        ct(tmp_path / patient / "1.dcm", "", SeriesInstanceUID="1.2.3")
    listing = list_source(tmp_path, TOLD, usable=False)
    assert named(listing) == {"anna": "used", "berta": "used"} and listing.about.keys() == {"anna", "berta"}


def test_a_prediction_calls_a_patient_alike_alone_and_beside_others(tmp_path: Path) -> None:
    ct(tmp_path / "anna" / "1.dcm", "MRN-1")
    assert named(list_source(tmp_path, TOLD, usable=False)) == {"anna": "used"}
    ct(tmp_path / "berta" / "1.dcm", "MRN-2")
    assert named(list_source(tmp_path, TOLD, usable=False)) == {"anna": "used", "berta": "used"}


def test_patients_below_one_folder_are_heard_of_however_broken_their_files_are(tmp_path: Path) -> None:
    ct(tmp_path / "export" / "anna" / "1.dcm", "MRN-1")
    ct(tmp_path / "export" / "berta" / "1.dcm", "MRN-2")
    whole = (tmp_path / "export" / "anna" / "1.dcm").read_bytes()
    (tmp_path / "export" / "carla").mkdir()
    (tmp_path / "export" / "carla" / "1.dcm").write_bytes(whole[:400])
    (tmp_path / "export" / "dora").mkdir()
    listing = list_source(tmp_path, TOLD, usable=False)
    assert named(listing).keys() == {"anna", "berta", "carla", "dora"} and len(listing.studies) == 2


def test_two_without_an_id_below_one_folder_are_not_taken_for_one_patient(tmp_path: Path) -> None:
    for name, study in (("a", "1.2.3"), ("b", "1.2.4")):
        ct(tmp_path / "export" / name / "1.dcm", "", StudyInstanceUID=study)
    with pytest.raises(UserError, match="PatientID is empty"):
        list_source(tmp_path, TOLD, usable=False)


def test_one_patient_of_whom_nothing_can_be_used_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "several" / "anna").mkdir(parents=True)
    ct(tmp_path / "broken" / "1.dcm", "MRN-1")
    (tmp_path / "broken" / "1.dcm").write_bytes((tmp_path / "broken" / "1.dcm").read_bytes()[:400])
    for folder, patient in (("empty", "empty"), ("several", "anna"), ("broken", "broken")):
        for kind in ("auto", "dicom"):
            told = replace(TOLD, format=kind)  # type: ignore[arg-type]
            assert named(list_source(tmp_path / folder, told, usable=False)).keys() == {patient}, kind
        with pytest.raises(UserError, match=r"no images found|nothing usable"):
            list_source(tmp_path / folder, TOLD)
