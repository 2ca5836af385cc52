"""Data sets that BAGEL keeps as Parquet, `t2i_pretrain` and `unified_edit`, written out once as lines and pictures.

Of each row one caption, or one wording of each instruction, is drawn; which one follows from the shuffle seed and the row.
Pictures are named by their content, so that rows that share one are known to.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymed.errors import UserError
from raymed.models.marks import IMAGE
from raymed.storage.folder import Folder
from raymed.systems.unimedvl.mixture_config import DataSet, Group, MixtureConfig
from raymed.systems.unimedvl.samples import REFUSED

log = logging.getLogger("raymed")

VERSION = 1  # of what is written: other lines from the same files need another number
ROWS = 64  # read at a time
LINES, PICTURES = "lines.jsonl", "pictures"


@dataclass(frozen=True)
class Layout:
    """How the rows of a class become lines: its columns, and what a row says."""

    columns: tuple[str, ...]
    line: Callable[[Mapping[str, Any], np.random.Generator], tuple[list[bytes], dict[str, Any]]]


def with_parquet_as_lines(config: MixtureConfig, storage: Folder) -> MixtureConfig:
    """The configuration, its Parquet data sets in place of which lines stand that are written below the storage.

    Raises:
        UserError: a data set has no Parquet file, or one of another layout.
    """
    root = Path(storage.path) if storage.is_local else Path.home() / ".raymed"

    def lines_of(group: Group, part: DataSet) -> DataSet:
        return part if part.info.jsonl_path else replace(part, info=replace(part.info, **_written(group, part, root)))

    return MixtureConfig(
        tuple(replace(group, sets=tuple(lines_of(group, part) for part in group.sets)) for group in config.groups)
    )


def _written(group: Group, part: DataSet, root: Path) -> dict[str, str]:
    """The lines and the folder of pictures of a data set; made unless they are there."""
    folder = Path(part.info.data_dir).expanduser().absolute()
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise UserError(f"the data set {part.name} has no jsonl_path, and no Parquet file in {folder}")
    seed = group.shuffle_seed or 0
    known = [(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    described = repr((VERSION, group.class_key, seed, str(folder), known))
    out = root / f"parquet-{part.name}-{hashlib.blake2b(described.encode(), digest_size=4).hexdigest()}"
    if not out.is_dir():
        log.info("%s: %d Parquet files are written out as lines and pictures: %s", part.name, len(files), out)
        draft = out.with_name(f".{out.name}")  # the folder is whole or not there
        shutil.rmtree(draft, ignore_errors=True)
        (draft / PICTURES).mkdir(parents=True)
        with (draft / LINES).open("w", encoding="utf-8") as lines:
            for file in files:
                for line in _lines(file, LAYOUTS[group.class_key], seed, draft / PICTURES):
                    lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        draft.rename(out)
    return {"jsonl_path": str(out / LINES), "data_dir": str(out / PICTURES)}


def _lines(file: Path, layout: Layout, seed: int, pictures: Path) -> Iterator[dict[str, Any]]:
    """A line for each row; of a row that cannot be used it says why.

    Raises:
        UserError: the file cannot be read, or lacks a column.
    """
    try:
        source = pq.ParquetFile(file)
        if missing := set(layout.columns) - set(source.schema_arrow.names):
            raise UserError(
                f"{file} has no column {', '.join(sorted(missing))}: it has {', '.join(source.schema_arrow.names)}"
            )
        number = 0
        for batch in source.iter_batches(ROWS, columns=list(layout.columns)):
            for row in batch.to_pylist():
                number += 1
                draws = np.random.default_rng([seed, number])
                try:
                    stored, line = layout.line(row, draws)
                except (ValueError, TypeError, AttributeError) as error:
                    yield {REFUSED: f"{file.name}, row {number}: {error}"}
                    continue
                names = [_kept(picture, pictures) for picture in stored]
                yield line | {key: [{"path": names[place]} for place in line[key]] for key in ("input_img", "output_img")}
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file} cannot be read as Parquet: {error}") from error


def _captioned(row: Mapping[str, Any], draws: np.random.Generator) -> tuple[list[bytes], dict[str, Any]]:
    """A picture, and one of its captions.

    Raises:
        ValueError: there is none.
    """
    captions = row["captions"]
    content = json.loads(captions) if isinstance(captions, str) else captions
    texts = [text for text in (content.values() if isinstance(content, dict) else content or []) if _is_text(text)]
    if not texts:
        raise ValueError("captions holds no text")
    turns = [{"from": "human", "value": texts[int(draws.integers(len(texts)))]}]
    return [_picture(row["image"])], {
        "main_task_type": "image_generation",
        "input_img": [],
        "output_img": [0],
        "message": turns,
    }


def _edited(row: Mapping[str, Any], draws: np.random.Generator) -> tuple[list[bytes], dict[str, Any]]:
    """A picture, and what each instruction makes of the one before.

    Raises:
        ValueError: not one instruction for each picture after the first.
    """
    pictures, instructions = [_picture(each) for each in row["image_list"] or []], row["instruction_list"] or []
    if len(pictures) < 2 or len(instructions) != len(pictures) - 1:
        raise ValueError(f"{len(instructions)} instructions for {len(pictures)} pictures: one for each after the first")
    turns: list[dict[str, str]] = []
    for wordings in instructions:
        texts = [text for text in ([wordings] if isinstance(wordings, str) else wordings or []) if _is_text(text)]
        if not texts:
            raise ValueError("an instruction without a text")
        turns.append({"from": "human", "value": IMAGE * (not turns) + texts[int(draws.integers(len(texts)))]})
    line = {"input_img": [0], "output_img": list(range(1, len(pictures))), "message": turns}
    return pictures, {"main_task_type": "image_to_image"} | line


LAYOUTS = {
    "t2i_pretrain": Layout(("image", "captions"), _captioned),
    "unified_edit": Layout(("image_list", "instruction_list"), _edited),
}


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _picture(value: object) -> bytes:
    """Raises: ValueError: it is no file of a picture."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes) or not content:
        raise ValueError("a picture is no bytes of a file")
    return content


def _kept(picture: bytes, folder: Path) -> str:
    """Write a picture's file as it is; its name."""
    name = hashlib.blake2b(picture, digest_size=16).hexdigest()
    if not (folder / name).exists():
        (folder / name).write_bytes(picture)
    return name
