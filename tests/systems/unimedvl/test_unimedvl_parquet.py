"""Parquet files as BAGEL keeps them, written out as lines and pictures: nothing is lost, and nothing is read twice."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from raymed.data.sources.listing import SourceSettings
from raymed.errors import UserError
from raymed.storage.folder import Folder
from raymed.systems.unimedvl.listing import list_sequences
from raymed.systems.unimedvl.mixture_config import MixtureConfig
from raymed.systems.unimedvl.parquet import with_parquet_as_lines


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16), np.uint8)).save(file, "PNG")
    return file.getvalue()


def configured(folder: Path, class_key: str, rows: list[dict[str, Any]]) -> MixtureConfig:
    """A data set of two files."""
    (folder / "data").mkdir()
    for name, part in (("a", rows[:1]), ("b", rows[1:])):
        pq.write_table(pa.Table.from_pylist(part), folder / "data" / f"{name}.parquet")
    info = {class_key: {"set": {"data_dir": "data", "num_files": 2}}}
    content = {"dataset_info": info, class_key: {"dataset_names": ["set"], "weight": 1}}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return MixtureConfig.read(folder / "config.yaml")


def written(config: MixtureConfig) -> list[dict[str, Any]]:
    ((part,),) = (group.sets for group in config.groups)
    return [json.loads(line) for line in Path(part.info.jsonl_path).read_text().splitlines()]


def test_captions_become_pictures_to_draw_and_bad_rows_are_refused_by_file_and_row(tmp_path: Path) -> None:
    rows = [
        {"image": png(0), "captions": json.dumps({"short": "A lung.", "long": "A lung with a nodule."})},
        {"image": png(1), "captions": "no JSON"},
        {"image": None, "captions": json.dumps({"short": "A heart."})},
        {"image": png(2), "captions": json.dumps({"short": "A heart."})},
    ]
    config = with_parquet_as_lines(configured(tmp_path, "t2i_pretrain", rows), Folder.at(tmp_path / "storage"))
    listing, counts = list_sequences(config, SourceSettings())
    assert sum(len(study.slices) for study in listing.studies) == 2
    assert counts["t2i_pretrain/t2i_pretrain/set"]["target"] == 2 and counts["t2i_pretrain/t2i_pretrain/set"]["gpt"] == 0
    reasons = sorted(refusal.reason for refusal in listing.refusals)
    assert "b.parquet, row 1: Expecting value" in reasons[0] and "b.parquet, row 2: a picture is no bytes" in reasons[1]
    (first, *_) = written(config)
    assert first["message"][0]["value"] in ("A lung.", "A lung with a nodule.")
    ((part,),) = (group.sets for group in config.groups)
    assert Path(part.info.data_dir, first["output_img"][0]["path"]).read_bytes() == png(0)


def test_edits_are_chained_and_what_was_written_is_kept(tmp_path: Path) -> None:
    steps = [["Remove it.", "Take it away."], ["Brighten."]]
    rows = [
        {"image_list": [png(0), png(1), png(2)], "instruction_list": steps},
        {"image_list": [png(3), png(4)], "instruction_list": steps},
    ]
    source = configured(tmp_path, "unified_edit", rows)
    config = with_parquet_as_lines(source, Folder.at(tmp_path / "storage"))
    first, second = written(config)
    assert [len(first["input_img"]), len(first["output_img"])] == [1, 2] and "2 instructions for 2 pictures" in second[
        "refused"
    ]
    assert first["message"][0]["value"] in ("<image>Remove it.", "<image>Take it away.")
    _, counts = list_sequences(config, SourceSettings())
    kinds = counts["unified_edit/unified_edit/set"]
    assert (kinds["target"], kinds["vae"], kinds["vit"], kinds["used"], kinds["refused"]) == (2, 2, 2, 1, 1)
    ((part,),) = (group.sets for group in config.groups)
    Path(part.info.jsonl_path).write_text("kept")
    again = with_parquet_as_lines(source, Folder.at(tmp_path / "storage"))
    assert again == config and Path(part.info.jsonl_path).read_text() == "kept"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [("columns", "no column captions"), ("bytes", "cannot be read as Parquet"), ("gone", "no Parquet file")],
)
def test_files_that_are_no_such_data_set_are_named_and_leave_nothing_behind(tmp_path: Path, spoil: str, reason: str) -> None:
    config = configured(tmp_path, "t2i_pretrain", [{"image": png(0), "caption": "x"}, {"image": png(1), "caption": "y"}])
    for file in (tmp_path / "data").glob("*.parquet"):
        if spoil == "bytes":
            file.write_bytes(b"PAR1 and no more")
        elif spoil == "gone":
            file.unlink()
    with pytest.raises(UserError, match=reason):
        with_parquet_as_lines(config, Folder.at(tmp_path / "storage"))
    assert not list(Path(tmp_path / "storage").glob("parquet-*"))
