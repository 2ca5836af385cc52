"""What a check shows and writes: the guide's lines, and nothing in the place of a text that is not there."""

import json
from pathlib import Path

import pytest
from report_records import SIZE, records

from raymed.data.image import ImageSettings
from raymed.systems.mamba_vlm.check import Check
from raymed.systems.mamba_vlm.recipe import ReportRecipe
from raymed.systems.mamba_vlm.settings import GenerationSettings
from raymed.systems.mamba_vlm.slices import Reading

RECIPE = ReportRecipe(Reading(ImageSettings(size=SIZE)))


@pytest.mark.parametrize("text", ["a nodule", ""])
def test_a_check_that_has_no_text_abstains_and_makes_none_up(tmp_path: Path, text: str) -> None:
    check = Check(records(1)[0], "case.nii.gz", text, RECIPE, ("a note",))
    shown = text or "(empty: the network abstains)"
    wanted = ["a note", "输入图像: case.nii.gz", "问题: What is there?", f"生成文本: {shown}", "参考: a nodule "]
    assert check.lines == wanted
    folder = check.write(tmp_path, GenerationSettings(), tmp_path / "last.pt")
    assert folder.name.startswith("run_") and len(folder.name) == len("run_YYYYmmdd_HHMMSS")
    assert (folder / "generated.txt").read_text() == f"{text}\n" and (folder / "slice.png").stat().st_size
    assert json.loads((folder / "meta.json").read_text())["abstained"] is (not text)
