"""The YAML of data sets: both layouts, the guide's worked example as written, and everything that can be wrong with it."""

import logging
import sys
from pathlib import Path

import pytest

from raymed.errors import UserError
from raymed.systems.unimedvl import registry
from raymed.systems.unimedvl.mixture_config import MixtureConfig
from raymed.systems.unimedvl.registry import DatasetInfo
from raymed.systems.unimedvl.resize import ResizeSettings
from raymed.systems.unimedvl.sequence import by_task, counterfactual

RADIOLOGY = """
RadiologyReportDataset:
  dataset_names:
    train:
      - radiology_reports_train
    val:
      - radiology_reports_val
  image_transform_args:
    image_stride: 16
    max_image_size: 1024
    min_image_size: 512
  vit_image_transform_args:
    image_stride: 14
    max_image_size: 980
    min_image_size: 378
    max_pixels: 2_007_040
  weight:
    train: 8
    val: 1
  num_used_data:
    train: [0, 0]
    val: [0, 0]
  is_mandatory: true
  shuffle_lines: true
  shuffle_seed: 42
"""
LIST = """
vlm_sft:
  dataset_names: [a, b]
  image_transform_args: {image_stride: 14, max_image_size: 980, min_image_size: 378}
  num_used_data: [3, 0]
  weight: 2
"""


@pytest.fixture(autouse=True)
def tables(monkeypatch) -> None:
    """Every test has tables of its own, with two data sets for `vlm_sft`."""
    sets = {name: DatasetInfo(f"/data/{name}.jsonl", f"/data/{name}") for name in ("a", "b")}
    monkeypatch.setattr(registry, "DATASET_REGISTRY", dict(registry.DATASET_REGISTRY))
    infos = {key: dict(known) for key, known in registry.DATASET_INFO.items()}
    monkeypatch.setattr(registry, "DATASET_INFO", {**infos, "vlm_sft": sets})


def read(tmp_path: Path, text: str, modules: str = "") -> MixtureConfig:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return MixtureConfig.read(path, modules)


def test_the_guides_worked_example_is_read_as_written(tmp_path) -> None:
    train, val = read(tmp_path, RADIOLOGY).groups
    assert (train.title, train.weight, train.split, train.mandatory, train.shuffle_seed) == (
        "RadiologyReportDataset/train", 8.0, "train", True, 42,
    )  # fmt: skip
    assert (val.weight, val.split) == (1.0, "val")
    assert train.vae == ResizeSettings(16, 1024, 512) and train.vit == ResizeSettings(14, 980, 378, 2_007_040)
    assert train.plan is by_task
    assert train.sets[0].info == DatasetInfo("/data/radiology/train_annotations.jsonl", "/data/radiology/images")


def test_a_list_of_data_sets_is_one_group_and_counts_are_for_each(tmp_path) -> None:
    (group,) = read(tmp_path, LIST).groups
    assert (group.title, group.weight, group.mandatory, group.shuffle_seed) == ("vlm_sft/vlm_sft", 2.0, False, None)
    assert [(part.name, part.start, part.end) for part in group.sets] == [("a", 0, 3), ("b", 0, 0)]
    assert group.vit == ResizeSettings(14, 980, 378, 1_806_336), "what upstream takes where no max_pixels is given"


def test_start_and_end_hold_for_each_data_set_of_a_group_and_the_rule_is_logged(tmp_path, caplog) -> None:
    text = "vlm_sft:\n  dataset_names: {one: [a, b]}\n  num_used_data: {one: [0, 1000]}\n"
    with caplog.at_level(logging.INFO, "raymed"):
        (group,) = read(tmp_path, text).groups
    assert [(part.start, part.end) for part in group.sets] == [(0, 1000), (0, 1000)]
    assert "lines 0 to 1000 of each of: a, b" in caplog.text


def test_a_group_may_be_trained_on_although_it_is_called_val(tmp_path) -> None:
    (group,) = read(tmp_path, "vlm_sft:\n  dataset_names: {val: [a]}\n  split: {val: train}\n").groups
    assert group.split == "train"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "holds no classes"),
        ("a: [", "not readable as YAML"),
        (RADIOLOGY + RADIOLOGY, "'RadiologyReportDataset' stands twice"),
        (RADIOLOGY.replace("RadiologyReportDataset", "NoSuchDataset"), "no class 'NoSuchDataset'; known: .*vlm_sft"),
        (
            RADIOLOGY.replace("reports_val", "reports_v"),
            "'radiology_reports_v' is not registered for 'RadiologyReportDataset'",
        ),
        (RADIOLOGY.replace("train: 8", "train: -1"), "weight of train is -1"),
        (RADIOLOGY.replace("train: 8", "tain: 8"), "weight.tain names no group; there are train, val"),
        (RADIOLOGY.replace("train: 8", "train: 0"), "weights .* sum to zero"),
        (RADIOLOGY.replace("train: [0, 0]", "train: [5, 2]"), "the end is not behind the start"),
        (RADIOLOGY.replace("train: [0, 0]", "train: [5]"), r"it is \[start, end\]"),
        (RADIOLOGY.replace("is_mandatory", "is_mandatry"), "keys that mean nothing here: is_mandatry"),
        (RADIOLOGY.replace("2_007_040", "large"), "max_pixels is 'large'"),
        (RADIOLOGY.replace("image_stride: 16", "stride: 16"), "image_transform_args.stride means nothing here"),
        (RADIOLOGY.replace("shuffle_seed: 42", "shuffle_seed: x"), "shuffle_seed is 'x'"),
        (LIST.replace("[3, 0]", "[3]"), "has 1 counts for 2 data sets"),
        (LIST.replace("[a, b]", "[]"), "must be a list of data sets with at least one"),
        (LIST.replace("[a, b]", "{val: [a]}").replace("[3, 0]", "0"), "no group to train on"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_key(tmp_path, text, reason) -> None:
    with pytest.raises(UserError, match=r"config\.yaml: .*" + reason):
        read(tmp_path, text)


MODULE = """
from raymed.systems.unimedvl.registry import dataset_class
from raymed.systems.unimedvl.sequence import Element

DATASET_INFO = {"EchoDataset": {"echo_train": {"data_dir": "/data/echo", "jsonl_path": "/data/echo.jsonl"}}}


@dataset_class("EchoDataset")
def echo(sample):
    return [Element("gpt", text) for text in sample.texts("human")]
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's own on Python's path."""
    (tmp_path / "echo_datasets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "echo_datasets"
    sys.modules.pop("echo_datasets", None)


@pytest.mark.parametrize("named", ["option", "config"])
def test_a_users_module_adds_a_class_and_data_sets_without_a_change_here(tmp_path, module, named) -> None:
    text = "EchoDataset:\n  dataset_names: {train: [echo_train]}\n"
    if named == "config":
        (group,) = read(tmp_path, f"registry: {module}\n{text}").groups
    else:
        (group,) = read(tmp_path, text, module).groups
    assert group.plan.__name__ == "echo" and group.sets[0].info == DatasetInfo("/data/echo.jsonl", "/data/echo")


def test_data_sets_can_be_added_by_the_configuration_alone(tmp_path) -> None:
    text = """
dataset_info:
  CounterfactualMedicalIterableDataset_ver1:
    mine: {data_dir: images, jsonl_path: lines.jsonl, num_files: 1}
CounterfactualMedicalIterableDataset_ver1:
  dataset_names: {train: [mine]}
"""
    (group,) = read(tmp_path, text).groups
    assert group.plan is counterfactual
    assert group.sets[0].info == DatasetInfo(str(tmp_path / "lines.jsonl"), str(tmp_path / "images"))


@pytest.mark.parametrize("name", ["no_such_module_here", "folder/datasets.py", "../datasets", "os.nothing"])
def test_a_registry_that_cannot_be_imported_is_named(tmp_path, name) -> None:
    with pytest.raises(UserError, match=r"the registry .*(cannot be imported|no module's name)"):
        read(tmp_path, LIST, name)


def test_nothing_is_run_from_a_folder_of_data(tmp_path, monkeypatch) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "planted_datasets.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path / "images")
    info = f"dataset_info: {{vlm_sft: {{a: {{data_dir: {tmp_path / 'images'}, jsonl_path: a.jsonl}}}}}}\n"
    with pytest.raises(UserError, match="planted_datasets lies among the data"):
        read(tmp_path, info + LIST, "planted_datasets")
    assert not (tmp_path / "ran").exists()


def test_two_plans_for_one_class_are_refused(module, tmp_path) -> None:
    registry.dataset_class("EchoDataset")(counterfactual)
    with pytest.raises(UserError, match="'EchoDataset' is registered twice"):
        read(tmp_path, LIST, module)
