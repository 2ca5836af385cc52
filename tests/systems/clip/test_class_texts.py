"""Class texts: which text a class gets, and what is wrong with a file of them."""

import errno
import logging
import os
from pathlib import Path

import pytest

from raymed.errors import UserError
from raymed.storage import disk
from raymed.systems.clip.class_texts import class_texts, read_class_texts, tell_missing, write_class_texts

NAMES = ["异常", "正常", "肺炎"]
TEMPLATE = "这是一张{class_name}的医学图像"


def test_a_given_text_goes_before_the_template_and_the_template_before_the_name(caplog: pytest.LogCaptureFixture) -> None:
    given = {"正常": "组织清晰", "肺炎": ["肺部炎症", "阴影"]}
    assert class_texts(NAMES, TEMPLATE, given) == (("这是一张异常的医学图像",), ("组织清晰",), ("肺部炎症", "阴影"))
    with caplog.at_level(logging.WARNING, "raymed"):
        tell_missing(NAMES, TEMPLATE, given)
    assert "异常" in caplog.text, "a class that falls back is named"
    assert class_texts(NAMES, None, given)[0] == ("异常",)
    assert class_texts(NAMES) == (("异常",), ("正常",), ("肺炎",))


def test_a_text_for_an_unknown_class_is_an_error_that_names_it() -> None:
    with pytest.raises(UserError, match=r"肺结核.*异常, 正常, 肺炎"):
        class_texts(NAMES, None, {"肺结核": "x"})


@pytest.mark.parametrize("template", ["医学图像", "{name}的图像", "{class_name", "{class_name}{0}"])
def test_a_template_that_would_give_all_classes_one_text_or_fail_is_an_error(template: str) -> None:
    with pytest.raises(UserError, match="template"):
        class_texts(NAMES, template)


def test_chinese_texts_survive_the_file_unescaped_and_sorted(tmp_path: Path) -> None:
    path = tmp_path / "texts.json"
    texts = {"肺炎": "阴影", "正常": "清晰"}
    write_class_texts(path, texts)
    written = path.read_text("utf-8")
    assert written == '{\n  "正常": "清晰",\n  "肺炎": "阴影"\n}\n'
    assert read_class_texts(path) == texts


def test_a_full_disk_leaves_the_texts_that_were_typed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "texts.json"
    write_class_texts(path, {"正常": "清晰"})

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, "write", full)
    with pytest.raises(UserError, match="cannot write"):
        write_class_texts(path, {"正常": "模糊"})
    assert read_class_texts(path) == {"正常": "清晰"}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('["a"]', "not a list"),
        ('{"a": 1}', "'a'"),
        ('{"a": ""}', "'a'"),
        ('{"a": []}', "'a'"),
        ('{"a": "x", "a": "y"}', "a stands twice"),
        ('{"a": "x"', "texts.json"),
    ],
)
def test_a_file_that_is_no_table_of_texts_is_named(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "texts.json"
    path.write_text(content, "utf-8")
    with pytest.raises(UserError, match=named) as error:
        read_class_texts(path)
    assert "texts.json" in str(error.value)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"class_texts\.py"):
        read_class_texts(tmp_path / "none.json")
