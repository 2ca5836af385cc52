"""paths.yaml: the guide's keys, Windows paths, and what is wrong said with its key."""

from pathlib import Path

import pytest

from raymed.errors import UserError
from raymed.systems.mamba_vlm.paths import Paths, local_path, read_paths
from raymed.systems.mamba_vlm.report_files import ReportFileOptions
from raymed.systems.mamba_vlm.report_settings import ReportSettings

GUIDE = """
caption_csv_train: d:/unn-net/train_radfm_315.csv
caption_csv_val: D:\\unn-net\\val_radfm_315.csv
caption_prompt_json: prompts/radfm.json
use_cmi: true
cmi_compress_to: 512
roi_side: 7
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "config" / "paths.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8-sig")
    return path


def test_the_guides_file_is_read_on_linux(tmp_path: Path) -> None:
    paths = read_paths(written(tmp_path, GUIDE))
    assert paths == Paths(
        caption_csv_train=Path("/mnt/d/unn-net/train_radfm_315.csv"),
        caption_csv_val=Path("/mnt/d/unn-net/val_radfm_315.csv"),
        caption_prompt_json=tmp_path / "config" / "prompts" / "radfm.json",
        use_cmi=True,
        cmi_compress_to=512,
        roi_side=7,
    )


@pytest.mark.parametrize(
    ("text", "path"),
    [("D:\\x\\y.nii", "/mnt/d/x/y.nii"), ("e:/../x", "/mnt/x"), ("a\\b", "/data/a/b"), ("/c/d", "/c/d"), ("../e", "/e")],
)
def test_drive_letters_are_absolute_and_other_paths_relative(text: str, path: str) -> None:
    assert local_path(text, Path("/data")) == Path(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("caption_csv_trian: a.csv", r"unknown key 'caption_csv_trian': did you mean caption_csv_train\?"),
        ("use_cmi: 1", "use_cmi is 1: give true or false"),
        ("roi_side: seven", "roi_side is 'seven': give a whole number"),
        ("caption_csv_val: [a, b]", "give a path"),
        ("a: [", "not valid YAML"),
        ("", "needs lines such as"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_paths(written(tmp_path, text))


def test_flags_come_before_the_file_and_both_splits_are_needed(tmp_path: Path) -> None:
    paths = str(written(tmp_path, "caption_csv_train: a.csv\ncaption_csv_val: b.csv\nnnunet_raw: raw"))
    files, _ = ReportFileOptions(paths=paths, val_csv=f"{tmp_path}/c.csv").files(ReportSettings())
    assert files.by_split == {"train": tmp_path / "config" / "a.csv", "val": tmp_path / "c.csv"}
    assert files.roots == (tmp_path / "config" / "raw",)
    with pytest.raises(UserError, match="a CSV for val is missing"):
        ReportFileOptions(train_csv="a.csv").files(ReportSettings())
    with pytest.raises(UserError, match="no reports: give --source"):
        ReportFileOptions().files(ReportSettings())
    with pytest.raises(UserError, match="give either"):
        ReportFileOptions(source="a.csv", val_csv="b.csv").files(ReportSettings())


def test_a_checkpoint_that_was_not_imported_is_not_passed_over_silently(tmp_path: Path) -> None:
    text = "caption_csv_train: a.csv\ncaption_csv_val: b.csv\nnnunet_encoder_checkpoint: checkpoint_best.pth"
    options = ReportFileOptions(paths=str(written(tmp_path, text)))
    with pytest.raises(UserError, match=r"jobs/import_nnunet\.py .*checkpoint_best\.pth --out DIR.*--normalize minmax"):
        options.files(ReportSettings())
    assert options.files(ReportSettings(normalize="minmax"))[1].encoder is None
