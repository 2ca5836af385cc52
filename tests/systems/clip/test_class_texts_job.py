"""The generator of class texts: sorted, UTF-8, template filled in, and Enter for what is proposed."""

import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from raymed.errors import UserError
from raymed.job.job import parse

sys.path.insert(0, str(Path(__file__).parents[3] / "jobs"))
import class_texts as job


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("肺炎", "正常", "异常"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "images" / name / "a.png")
    return tmp_path / "images"


def write(images: Path, *words: str) -> str:
    path = images.parent / "texts.json"
    options = parse(job.WriteClassTexts, ["--data-dir", str(images), "--output", str(path), *words], aliases=job.GUIDE)
    job.main(options)
    return path.read_text("utf-8")


def test_the_template_is_filled_in_and_classes_are_sorted(images):
    written = write(images, "--template", "这是一张{class_name}的医学图像")
    assert list(json.loads(written).items()) == [(name, f"这是一张{name}的医学图像") for name in ("异常", "正常", "肺炎")]
    assert "\\u" not in written and '\n  "异常"' in written


def test_without_a_template_the_name_is_the_text(images):
    assert json.loads(write(images)) == {name: name for name in ("异常", "正常", "肺炎")}


def test_what_is_typed_is_taken_and_enter_or_the_end_takes_the_proposal(images, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("可见异常阴影\n\n"))
    written = json.loads(write(images, "--interactive", "--template", "{class_name}图"))
    assert written == {"异常": "可见异常阴影", "正常": "正常图", "肺炎": "肺炎图"}


def test_a_folder_without_images_is_named(images):
    (images / "空").mkdir()
    with pytest.raises(UserError, match="空"):
        write(images)


def test_texts_that_were_written_are_not_overwritten(images):
    before = write(images)
    with pytest.raises(UserError, match="is there already: --interactive goes through its texts"):
        write(images, "--template", "{class_name}图")
    assert (images.parent / "texts.json").read_text("utf-8") == before


def test_the_guide_s_two_commands_work_one_after_the_other(images, monkeypatch):
    write(images, "--template", "{class_name}图")
    monkeypatch.setattr("sys.stdin", io.StringIO("可见异常阴影\n\n\n"))
    assert json.loads(write(images, "--interactive")) == {"异常": "可见异常阴影", "正常": "正常图", "肺炎": "肺炎图"}


def test_several_texts_of_a_class_outlive_going_through_the_file(images, monkeypatch):
    texts = {"正常": ["正常", "无异常"], "肺炎": "肺炎图"}
    (images.parent / "texts.json").write_text(json.dumps(texts), "utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n\n\n"))
    assert json.loads(write(images, "--interactive")) == texts | {"异常": "异常"}
    (images.parent / "texts.json").write_text('{"结核": "x"}', "utf-8")
    with pytest.raises(UserError, match="has texts for 结核, of which there is no folder"):
        write(images, "--interactive")
