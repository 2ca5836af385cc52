"""Preparing real files with real Ray: what is read, kept, refused and published."""

import io
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import ray
from filelock import FileLock
from object_store import object_store
from PIL import Image
from scipy.ndimage import gaussian_filter

from raymed.data import publish, shards
from raymed.data.counts import left_out
from raymed.data.image import PIXEL_RULE, ImageSettings
from raymed.data.prepare import PrepareSettings, curate, plain_settings, prepare
from raymed.data.prepared import MANIFEST, Prepared
from raymed.data.readers import READERS, reading
from raymed.data.record import BLAKE3, SHA256
from raymed.data.shards import LoadSlices
from raymed.data.sources import list_source, load_study
from raymed.data.split import SplitSettings
from raymed.data.stream import stage
from raymed.data.survey import survey
from raymed.errors import CommonError, UserError
from raymed.storage.folder import Folder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]

REAL = os.environ.get("RAYMED_REAL_DATA")
SETTINGS = PrepareSettings(image=ImageSettings(size=32), split=SplitSettings(folds=2))
CLASSES = ("normal", "bacterial", "viral", "pneumocystis")


def picture(seed: int, size: int = 48) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return np.clip(gaussian_filter(draw.normal(size=(size, size)), 2) * 400 + 120, 0, 255).astype(np.uint8)


def add_patient(folder: Path, label: str, patient: str, slices: int = 3, seed: int = 0) -> None:
    (folder / label / patient).mkdir(parents=True)
    for position in range(slices):
        Image.fromarray(picture(seed * 100 + position)).save(folder / label / patient / f"{position}.png")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four classes of four patients of three slices."""
    folder = tmp_path / "source"
    for number in range(16):
        add_patient(folder, CLASSES[number % 4], f"p{number:02d}", seed=number)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def files(out: str) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path(out).rglob("*") if path.is_file()}


def splits(prepared: Prepared) -> dict[str, tuple[str, int | None]]:
    rows = prepared.index.select(["patient", "split", "fold"]).to_pylist()
    return {row["patient"]: (row["split"], row["fold"]) for row in rows}


def test_nothing_is_written_among_the_originals(source: Path) -> None:
    with pytest.raises(UserError, match="is where the originals lie"):
        prepare(source, str(source), SETTINGS)
    with pytest.raises(UserError, match="among the originals"):
        prepare(source, str(source / "below"), SETTINGS)
    assert sorted(path.name for path in source.iterdir()) == sorted(CLASSES)


def test_what_exif_asks_for_is_refused_or_followed_and_noted_for_whoever_asks_the_model(source: Path, out: str) -> None:
    path, turned = source / "normal" / "p00" / "0.png", Image.Exif()
    upright, turned[0x0112] = picture(0), 6
    Image.fromarray(np.ascontiguousarray(upright.swapaxes(0, 1)[::-1])).save(path, exif=turned)
    refused = prepare(source, out, replace(SETTINGS, max_quarantine="5%")).prepared
    assert refused.manifest.quarantined == 1 and "exif" not in refused.manifest.settings["image"]
    applied = prepare(source, out, replace(SETTINGS, image=ImageSettings(size=48, exif="apply"))).prepared
    assert applied.manifest.quarantined == 0 and applied.image.exif == "apply" and applied.digest != refused.digest
    row = applied.index["id"].to_pylist().index("normal/p00/0.png")
    assert np.array_equal(applied.read([row])[0].images[0].pixels[:, :, 0], upright)


def test_every_slice_is_in_the_index_and_reads_back_as_its_file(source: Path, out: str):
    result = prepare(source, out, SETTINGS)
    prepared = Prepared.open(out)
    assert (result.new, result.kept) == (16, 0)
    assert prepared.digest == result.prepared.digest
    assert prepared.manifest.patients == {name: {"test": 1, "train": 2, "val": 1} for name in sorted(CLASSES)}
    assert result.guard.records == {"train": 24, "val": 12, "test": 12}
    assert prepared.manifest.modalities == {"picture": 48}, "nobody may claim that these are Hounsfield units"
    listing = list_source(source, SETTINGS)
    expected = {piece.id: pixels for study in listing.studies for piece, pixels in load_study(source, study, SETTINGS.image)}
    records = prepared.read(prepared.rows("all"))
    assert {record.id for record in records} == expected.keys()
    for record in records:
        assert np.array_equal(record.images[0].pixels, expected[record.id])
        assert prepared.labels.names[record.label or 0] in record.id
    order = [(record.patient, record.study, record.position) for record in records]
    assert order == sorted(order)


def test_unchanged_input_does_no_work(source: Path, out: str):
    first = prepare(source, out, SETTINGS)
    before = files(out)
    again = prepare(source, out, SETTINGS)
    assert (again.new, again.kept, again.prepared.digest) == (0, 16, first.prepared.digest)
    assert files(out) == before


def test_added_patients_alone_are_read_and_nobody_moves(source: Path, out: str):
    first = prepare(source, out, SETTINGS).prepared
    before = {path: time for path, time in files(out).items() if "shards" in path}
    add_patient(source, "viral", "aa-new", seed=50)
    result = prepare(source, out, SETTINGS)
    assert (result.new, result.kept) == (1, 16)
    assert before.items() <= files(out).items()
    assert splits(first).items() <= splits(result.prepared).items()
    assert {record.patient for record in result.prepared.read(result.prepared.rows("all"))} >= {"aa-new", "p00"}


def test_changed_and_removed_studies_follow_the_source(source: Path, out: str):
    first = prepare(source, out, SETTINGS).prepared
    Image.fromarray(picture(999)).save(source / "normal" / "p00" / "0.png")
    gone = next(patient for patient, (split, _) in splits(first).items() if split == "train" and patient != "p00")
    shutil.rmtree(next(source.glob(f"*/{gone}")))
    result = prepare(source, out, SETTINGS)
    assert (result.new, result.kept) == (1, 14)
    patients = result.prepared.columns(result.prepared.rows("all"), ["patient"])["patient"]
    assert set(patients) == set(splits(first)) - {gone}
    (record,) = (r for r in result.prepared.read(result.prepared.rows("all")) if r.id == "normal/p00/0.png")
    assert np.array_equal(record.images[0].pixels[..., 0], Image.fromarray(picture(999)).resize((32, 32), 3))


def test_what_is_trained_on_is_a_changed_study_as_it_is_now_though_its_old_shard_stays(source: Path, out: str):
    first = prepare(source, out, SETTINGS).prepared
    Image.fromarray(picture(999)).save(source / "normal" / "p00" / "0.png")
    add_patient(source, "normal", "p99", seed=99)
    prepared = prepare(source, out, SETTINGS).prepared
    assert set(first.manifest.shards) & set(prepared.manifest.shards), "no shard of the first time is left: nothing is shown"
    rows = prepared.rows("all")
    (staged,) = stage(prepared, rows).open().read([rows.tolist()])
    for record, wanted in zip(staged, prepared.read(rows), strict=True):
        assert (record.id, record.label) == (wanted.id, wanted.label)
        assert np.array_equal(record.images[0].pixels, wanted.images[0].pixels)


def test_other_image_settings_replace_every_shard(source: Path, out: str):
    prepare(source, out, SETTINGS)
    before = files(out)
    result = prepare(source, out, replace(SETTINGS, image=ImageSettings(size=24)))
    assert (result.new, result.prepared.size) == (16, 24)
    assert not {path for path in files(out) if "shards" in path or "index" in path} & before.keys()
    assert result.prepared.read(np.array([0]))[0].images[0].pixels.shape == (24, 24, 1)


def test_what_a_search_reads_stays_while_others_are_prepared_in_its_place_and_goes_once_it_has_ended(source: Path, out: str):
    first = prepare(source, out, SETTINGS).prepared
    wanted = first.read(first.rows("all"))
    with reading(out, first.digest):
        second = prepare(source, out, replace(SETTINGS, image=ImageSettings(size=24))).prepared
        assert Prepared.open(out).size == 24
        kept = Prepared.open(out, first.digest)
        for record, other in zip(wanted, kept.read(kept.rows("all")), strict=True):
            assert (record.id, record.label) == (other.id, other.label)
            assert np.array_equal(record.images[0].pixels, other.images[0].pixels)
        assert kept.index.equals(first.index)
    assert prepare(source, out, replace(SETTINGS, image=ImageSettings(size=24))).new == 0
    with pytest.raises(CommonError, match="was prepared again"):
        Prepared.open(out, first.digest)
    left = {path.name for path in Path(out).rglob("*.*")} - {"prepare.lock", READERS, "quarantine.jsonl"}
    assert left == {MANIFEST, second.manifest.index, second.manifest.studies, *second.manifest.shards}


def test_data_that_differ_from_others_in_what_no_index_says_stay_for_their_reader(
    source: Path, out: str, monkeypatch: pytest.MonkeyPatch
):
    first = prepare(source, out, SETTINGS).prepared
    monkeypatch.setattr(publish, "_content_digest", lambda *_: "f" * 32)  # as the name of a class would change it
    with reading(out, first.digest):
        second = prepare(source, out, replace(SETTINGS, max_quarantine="3%")).prepared
        assert second.digest != first.digest and second.manifest.index == first.manifest.index
        assert Prepared.open(out, first.digest).manifest == first.manifest


def test_data_of_an_earlier_pixel_rule_are_read_again_and_have_another_digest(source: Path, out: str):
    earlier = replace(SETTINGS, image=ImageSettings.from_dict(asdict(SETTINGS.image) | {"rule": 0}))
    found, folder = survey(source, earlier, earlier.labels), Folder.at(out)
    described = plain_settings(earlier, PrepareSettings)
    first = curate(found, LoadSlices(source, SETTINGS.image), folder, earlier, described, ("image",)).prepared
    assert Prepared.open(out).image.rule == 0
    again = prepare(source, out, SETTINGS)
    assert (again.new, again.kept) == (16, 0), "pixels of two rules would stand in one data set"
    assert again.prepared.image.rule == PIXEL_RULE
    assert again.prepared.digest != first.digest
    assert splits(again.prepared) == splits(first)


def test_data_whose_pictures_are_known_by_sha_256_are_read_again_and_nobody_moves(source: Path, out: str):
    """An index whose pictures are known by two functions would pass over copies, and could not be checked."""
    first = prepare(source, out, SETTINGS).prepared
    Folder.at(out).write(MANIFEST, replace(first.manifest, pictures_by=SHA256).to_json())
    again = prepare(source, out, SETTINGS)
    assert (again.new, again.kept, again.prepared.manifest.pictures_by) == (16, 0, BLAKE3)
    assert splits(again.prepared) == splits(first)


def test_two_who_prepare_into_one_folder_do_it_one_after_the_other(source: Path, out: str, caplog: pytest.LogCaptureFixture):
    Path(out).mkdir()
    with ThreadPoolExecutor() as pool:
        with FileLock(f"{out}/prepare.lock"):
            waiting = pool.submit(prepare, source, out, SETTINGS)
            while "waiting until it has ended" not in caplog.text:
                assert not waiting.done()
                time.sleep(0.01)
            assert not Path(out, "manifest.json").exists()
        assert waiting.result().new == 16


def test_who_prepares_into_a_folder_of_an_object_store_that_another_process_prepares_into_is_refused(source: Path):
    theirs = {"host": "elsewhere", "machine": "elsewhere 1", "pid": 1, "started": "1"}
    with object_store() as bucket:
        Folder.at(f"{bucket}/data").write(".leases/prepare/theirs.json", json.dumps(theirs).encode())
        with pytest.raises(UserError, match=r"'prepare' is running in another process \(1 on elsewhere"):
            prepare(source, f"{bucket}/data", SETTINGS)
        assert not Folder.at(f"{bucket}/data").exists(MANIFEST)


def test_a_lost_shard_is_made_again(source: Path, out: str):
    first = prepare(source, out, SETTINGS)
    lost = sorted(Path(out, "shards").iterdir())[0]
    lost.unlink()
    again = prepare(source, out, SETTINGS)
    assert 0 < again.new < 16
    assert again.prepared.digest == first.prepared.digest
    assert len(again.prepared.read(again.prepared.rows("all"))) == 48


def test_the_digest_does_not_depend_on_how_the_work_was_divided(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one = prepare(source, str(tmp_path / "one"), SETTINGS).prepared
    monkeypatch.setattr(shards, "SHARD_BYTES", 32 * 32 * 3)
    many = prepare(source, str(tmp_path / "many"), SETTINGS).prepared
    assert len(many.manifest.shards) == 16 != len(one.manifest.shards)
    assert one.digest == many.digest


def test_a_bad_slice_goes_to_the_quarantine_and_takes_no_neighbour_along(source: Path, out: str):
    (source / "normal" / "p00" / "1.png").write_bytes(b"")
    (source / "viral" / "p02" / "0.png").write_bytes((source / "viral" / "p02" / "0.png").read_bytes()[:200])
    result = prepare(source, out, replace(SETTINGS, max_quarantine="10%"))
    lines = [json.loads(line) for line in Path(out, "quarantine.jsonl").read_text("utf-8").splitlines()]
    assert [line["id"] for line in lines] == ["normal/p00/1.png", "viral/p02/0.png"]
    assert [line["patient"] for line in lines] == ["p00", "p02"]
    assert "empty" in lines[0]["reason"]
    assert "truncated" in lines[1]["reason"]
    assert result.prepared.index.num_rows == 46
    assert result.prepared.manifest.quarantined == 2
    before = files(out)
    add_patient(source, "viral", "zz-new", seed=60)
    prepare(source, out, replace(SETTINGS, max_quarantine="10%"))
    assert Path(out, "quarantine.jsonl").read_text("utf-8").count("\n") == 2
    assert files(out) != before


def test_a_patient_of_whom_nothing_is_left_is_named_and_stays_named(source: Path, out: str):
    for path in (source / "normal" / "p00").iterdir():
        path.write_bytes(b"no picture")
    (source / "viral" / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"2 of 17 patients have no slice that can be used.*empty: an empty folder; p00: not a"
    ):
        prepare(source, out, replace(SETTINGS, max_quarantine="10%"))
    manifest = prepare(source, out, replace(SETTINGS, max_quarantine="20%")).prepared.manifest
    assert manifest.left_out.keys() == {"empty", "p00"}
    assert left_out(manifest.left_out)[:2] == ["patients without a usable slice: 2", "  empty: an empty folder"]
    add_patient(source, "viral", "zz-new", seed=60)
    assert prepare(source, out, replace(SETTINGS, max_quarantine="20%")).prepared.manifest.left_out == manifest.left_out


def test_too_many_bad_slices_stop_it_and_leave_the_old_data_alone(source: Path, out: str):
    first = prepare(source, out, SETTINGS)
    for number in range(4):
        add_patient(source, "viral", f"bad{number}", seed=70 + number)
        for path in (source / "viral" / f"bad{number}").iterdir():
            path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"of 60 records cannot be used, more than max_quarantine 5\.0%.*not a readable"):
        prepare(source, out, SETTINGS)
    assert Prepared.open(out).digest == first.prepared.digest
    assert len(first.prepared.read(first.prepared.rows("all"))) == 48


@pytest.mark.parametrize("text", ["5", "101%", "many", "-1%"])
def test_a_limit_that_is_no_share_is_an_error(source: Path, out: str, text: str):
    with pytest.raises(UserError, match="max_quarantine"):
        prepare(source, out, replace(SETTINGS, max_quarantine=text))


def test_identical_pixels_of_two_patients_are_an_error_that_names_both_files(source: Path, out: str):
    pixels = (source / "normal" / "p00" / "1.png").read_bytes()
    (source / "viral" / "p02" / "2.png").write_bytes(pixels)
    with pytest.raises(UserError, match=r"p00 \(normal/p00/1\.png\) = p02 \(viral/p02/2\.png\)"):
        prepare(source, out, SETTINGS)
    assert not Path(out, "manifest.json").exists()


def test_identical_pixels_within_a_patient_and_black_slices_are_kept(source: Path, out: str):
    (source / "normal" / "p00" / "2.png").write_bytes((source / "normal" / "p00" / "1.png").read_bytes())
    for name in ("normal/p04", "viral/p02"):
        Image.fromarray(np.zeros((48, 48), np.uint8)).save(source / name / "0.png")
    prepared = prepare(source, out, SETTINGS).prepared
    assert prepared.index.num_rows == 48
    assert prepared.manifest.same_pixels == 1


@pytest.fixture
def copied(source: Path) -> Path:
    """p00 and p01, of different classes, share a picture that was saved again as JPEG."""
    original = Image.open(source / "normal" / "p00" / "1.png")
    file = io.BytesIO()
    original.save(file, "JPEG", quality=85)
    (source / "bacterial" / "p01" / "1.png").write_bytes(file.getvalue())
    return source


def test_patients_that_share_a_near_duplicate_stay_in_one_split_and_fold(copied: Path, out: str):
    prepared = prepare(copied, out, SETTINGS).prepared
    assert prepared.manifest.near_duplicates == [["p00", "p01"]]
    assert splits(prepared)["p00"] == splits(prepared)["p01"]


def test_near_duplicates_can_be_an_error_or_a_warning(copied: Path, out: str, caplog: pytest.LogCaptureFixture):
    with pytest.raises(UserError, match=r"p01/1\.png and .*p00/1\.png|p00/1\.png and .*p01/1\.png"):
        prepare(copied, out, replace(SETTINGS, near_duplicates="error"))
    prepared = prepare(copied, out, replace(SETTINGS, near_duplicates="warn")).prepared
    assert "p00 = p01" in caplog.text
    assert prepared.manifest.near_duplicates == [["p00", "p01"]]
    assert prepared.columns(prepared.rows("all"), ["group"])["group"].tolist() == prepared.index["patient"].to_pylist()


def test_pictures_without_labels_are_prepared_into_no_split(source: Path, out: str):
    prepared = prepare(source / "normal", out, replace(SETTINGS, labelled=False)).prepared
    assert prepared.manifest.patients == {"unlabelled": {"unsplit": 4}}
    assert prepared.rows("train").size == 0
    assert prepared.read(np.array([0]))[0].label is None


def test_one_split_takes_everything(source: Path, out: str):
    prepared = prepare(source, out, replace(SETTINGS, split=SplitSettings("0/0/100", folds=0))).prepared
    assert prepared.rows("test").tolist() == prepared.rows("all").tolist()


def test_a_split_file_is_followed_and_may_change(source: Path, out: str, tmp_path: Path):
    path = tmp_path / "splits.csv"
    patients = [f"p{number:02d}" for number in range(16)]
    settings = replace(SETTINGS, split=SplitSettings(file=str(path), folds=2))
    for offset in range(2):
        given = {patient: ("train", "val", "test")[(number + offset) % 3] for number, patient in enumerate(patients)}
        path.write_text("patient_id,split\n" + "".join(f"{p},{split}\n" for p, split in given.items()), "utf-8")
        prepared = prepare(source, out, settings).prepared
        assert {patient: split for patient, (split, _) in splits(prepared).items()} == given


def test_a_killed_run_leaves_the_old_data_and_the_next_one_goes_on(source: Path, out: str, monkeypatch: pytest.MonkeyPatch):
    first = prepare(source, out, SETTINGS).prepared
    monkeypatch.setattr(shards, "SHARD_BYTES", 32 * 32)
    for number in range(60):
        (source / "viral" / f"q{number:02d}").mkdir()
        pixels = np.repeat(np.repeat(picture(100 + number), 40, axis=0), 40, axis=1)  # large, so that reading takes a while
        Image.fromarray(pixels).save(source / "viral" / f"q{number:02d}" / "0.png", compress_level=1)
    script = (
        "import sys; from pathlib import Path; from raymed.data import prepare as p, shards; shards.SHARD_BYTES = 32 * 32\n"
        "from raymed.data.image import ImageSettings; from raymed.data.split import SplitSettings\n"
        "settings = p.PrepareSettings(image=ImageSettings(size=32), split=SplitSettings(folds=2))\n"
        "p.prepare(Path(sys.argv[1]), sys.argv[2], settings)"
    )
    # The session's Ray listens on loopback alone; other processes look for it there only as those of a laptop.
    here = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    unfinished = Path(out, "unfinished")
    with subprocess.Popen([sys.executable, "-c", script, str(source), out], env=os.environ | here) as process:
        deadline = time.monotonic() + 120
        while (
            process.poll() is None
            and time.monotonic() < deadline
            and not (unfinished.exists() and any(unfinished.iterdir()))
        ):
            time.sleep(0.01)
        process.kill()
    assert unfinished.exists(), "the run ended before it could be killed"
    survivor = Prepared.open(out)
    assert survivor.digest == first.digest
    assert len(survivor.read(survivor.rows("all"))) == 48
    done = {
        path.name: path.stat().st_mtime_ns for path in Path(out, "shards").iterdir() if (unfinished / path.name).exists()
    }
    finished = prepare(source, out, SETTINGS).prepared
    assert finished.index.num_rows == 108
    assert not unfinished.exists()
    there = {path.name: path.stat().st_mtime_ns for path in Path(out, "shards").iterdir()}
    assert there.keys() == finished.manifest.shards.keys()
    assert done.items() <= there.items(), "shards that were complete are written again"


def test_an_output_that_cannot_be_written_is_an_error_and_no_traceback(source: Path, tmp_path: Path):
    (tmp_path / "file").write_text("in the way", "utf-8")
    with pytest.raises(UserError, match="cannot write"):
        prepare(source, str(tmp_path / "file" / "out"), SETTINGS)


def test_a_class_with_too_few_patients_is_an_error_before_anything_is_read(source: Path, out: str):
    for patient in ("p01", "p05"):
        shutil.rmtree(source / "bacterial" / patient)
    with pytest.raises(UserError, match="class bacterial: 2"):
        prepare(source, out, SETTINGS)
    assert not Path(out).exists()


@pytest.mark.real
@pytest.mark.skipif(not REAL, reason="RAYMED_REAL_DATA is not set")
def test_real_ct_is_refused_for_its_unknown_label_and_prepared_once_that_is_ignored(tmp_path: Path):
    source = Path(REAL or "") / "lung_ct"
    settings = replace(SETTINGS, split=SplitSettings("0/0/100", folds=0))
    with pytest.raises(UserError, match=r"'cap' \(28\)"):
        prepare(source, str(tmp_path / "out"), settings)
    assert not (tmp_path / "out").exists()
    table = tmp_path / "table.yaml"
    table.write_text("classes: [{code: '0', name: normal}, {code: '2', name: viral}]\nignore: [cap]\n", "utf-8")
    prepared = prepare(source, str(tmp_path / "out"), replace(settings, labels=str(table))).prepared
    assert prepared.manifest.slices == {"normal": {"test": 25}, "viral": {"test": 24}}
    assert prepared.manifest.ignored == {"cap": 28}
    assert prepared.manifest.near_duplicates == []
    assert Folder.at(str(tmp_path / "out")).exists("quarantine.jsonl")


def meta(folder: Path) -> tuple[Path, PrepareSettings, list[str]]:
    turns = [{"from": "human", "value": "<image>\n<cls>: normal|viral."}, {"from": "gpt", "value": "normal"}]
    for seed in range(3):
        Image.fromarray(picture(seed)).save(folder / f"{seed}.png")
    lines = [json.dumps({"image": f"{seed}.png", "conversations": turns}) for seed in range(3)]
    (folder / "lines.jsonl").write_text("\n".join(lines) + "\n")
    keys = {"length": 7, "repeat_time": 2, "data_augment": True, "max_dynamic_patch": 6}
    (folder / "meta.json").write_text(json.dumps({"chest": {"root": ".", "annotation": "lines.jsonl"} | keys}))
    told = [
        "chest: these keys do not change how data are prepared: repeat_time=2, data_augment=True, max_dynamic_patch=6",
        "chest: length says 7, the annotation has 3 lines",
        "no line names a patient, so each of the 3 pictures counts as a patient of its own",
    ]
    return folder / "meta.json", PrepareSettings(), told


def class_folders(folder: Path) -> tuple[Path, PrepareSettings, list[str]]:
    for seed, name in enumerate(["a/1.png", "a/2.png", "b/1.png", "b/2.png"]):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture(seed)).save(folder / name)
    settings = PrepareSettings(format="classes", labels="source")
    return folder, settings, ["no patients are known: every image counts as a patient of its own"]


@pytest.mark.parametrize("made", [meta, class_folders])
def test_what_a_person_should_know_of_the_source_is_said_when_it_is_prepared_and_kept_with_the_data(
    made: Callable[[Path], tuple[Path, PrepareSettings, list[str]]],
    tmp_path: Path,
    out: str,
    caplog: pytest.LogCaptureFixture,
):
    """A wrong length, keys of a meta file that are not followed, and images without patients: not only in a dry run."""
    (tmp_path / "noted").mkdir()
    source, settings, told = made(tmp_path / "noted")
    split = SplitSettings(weights="1/0/0", folds=0)
    settings = replace(settings, image=ImageSettings(size=32), split=split, max_quarantine="100%")
    for _ in range(2):  # the same command, which finds nothing to do, says and keeps them, too
        caplog.clear()
        with caplog.at_level(logging.WARNING, "raymed"):
            prepare(source, out, settings)
        kept = Prepared.open(out).manifest.notes
        for sentence in told:
            assert any(sentence in record.getMessage() for record in caplog.records), sentence
            assert any(sentence in note for note in kept), sentence
