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


def test_texts_that_were_written_are_not_overwritten_nor_asked_for_in_vain(images, monkeypatch):
    before = write(images)
    monkeypatch.setattr(job, "ask", lambda name, text: pytest.fail("asked for a text that has no place"))
    with pytest.raises(UserError, match="is there already"):
        write(images, "--interactive")
    assert (images.parent / "texts.json").read_text("utf-8") == before
