"""The file that says where a report writer's data and weights lie, and paths that were written on Windows."""

from __future__ import annotations

import os
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raymed.data.sources.paths import absence, read_text
from raymed.errors import UserError
from raymed.job.mistakes import did_you_mean
from raymed.job.yaml_once import read_yaml
from raymed.storage.folder import DRIVE, off_drive


@dataclass(frozen=True)
class Paths:
    """What a ``paths.yaml`` says; None of what it leaves out.

    Attributes:
        caption_csv_train: reports to learn from.
        caption_csv_val: reports to validate on.
        caption_prompt_json: questions for lines without one.
        nnunet_encoder_checkpoint: an nnU-Net checkpoint, or the folder that it was imported into.
        nnunet_raw: folder below which pictures may lie; likewise nnunet_preprocessed and nnunet_results.
        encoder_output_stage: which stage of the encoder gives the feature map.
        encoder_target_spatial: side of the feature map that the bridge gets.
        bridge_d_model: width of a visual token.
        bridge_bidirectional: whether the bridge reads the tokens in both directions.
        use_cmi: whether the question steers the visual tokens.
        cmi_compress_to: most visual tokens that it reads.
        cmi_d_state: size of its state.
        roi_side: side of the part of the feature map that is used.
        use_pooling: whether the map is averaged to `pool_size` on a side.
        pool_size: see there.
    """

    caption_csv_train: Path | None = None
    caption_csv_val: Path | None = None
    caption_prompt_json: Path | None = None
    nnunet_encoder_checkpoint: Path | None = None
    nnunet_raw: Path | None = None
    nnunet_preprocessed: Path | None = None
    nnunet_results: Path | None = None
    encoder_output_stage: int | None = None
    encoder_target_spatial: int | None = None
    bridge_d_model: int | None = None
    bridge_bidirectional: bool | None = None
    use_cmi: bool | None = None
    cmi_compress_to: int | None = None
    cmi_d_state: int | None = None
    roi_side: int | None = None
    use_pooling: bool | None = None
    pool_size: int | None = None


def read_paths(file: str | Path) -> Paths:
    """A YAML file of the keys of `Paths`; relative paths are relative to the file.

    Raises:
        UserError: no such file, not YAML, an unknown key, or a value of another kind.
    """
    path = local_path(str(file), Path.cwd())
    if not path.is_file():
        raise UserError(f"{path}: {absence(path)}")
    try:
        content = read_yaml(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: needs lines such as caption_csv_train: reports.csv")
    kinds = typing.get_type_hints(Paths)
    for key in content:
        if key not in kinds:
            near = did_you_mean(str(key), list(kinds))
            raise UserError(f"{path}: unknown key {key!r}{near}; the keys are {', '.join(kinds)}")
    return Paths(**{key: _value(path, key, value, kinds[key]) for key, value in content.items()})


def settings_of(paths: Paths, file: Path) -> dict[str, Any]:
    """Settings by name that a paths.yaml says something about.

    Raises:
        UserError: the encoder's checkpoint was not imported, or the file asks for what there is not.
    """
    encoder = paths.nnunet_encoder_checkpoint
    if encoder is not None and not encoder.is_dir():
        raise UserError(
            f"{file}: nnunet_encoder_checkpoint is a checkpoint: import it (python jobs/import_nnunet.py {encoder} --out "
            "nnunet_encoder) and name the folder"
        )
    if paths.bridge_bidirectional is False:
        raise UserError(f"{file}: bridge_bidirectional false: the bridge reads in both directions; leave the line out")
    values = {
        "vision.encoder": None if encoder is None else str(encoder),
        "vision.output_stage": paths.encoder_output_stage,
        "vision.target_side": paths.encoder_target_spatial,
        "vision.roi_side": paths.roi_side,
        "vision.pool_side": (paths.pool_size or 12) if paths.use_pooling else None,
        "cmi.use": paths.use_cmi,
        "cmi.compress_to": paths.cmi_compress_to,
        "cmi.states": paths.cmi_d_state,
    }
    return {name: value for name, value in values.items() if value is not None}


def local_path(text: str, folder: Path) -> Path:
    """An absolute path as this system writes it: ``D:\\x`` is ``/mnt/d/x`` but on Windows.

    Args:
        folder: what other paths are relative to, absolute.
    """
    text = off_drive(text.strip())
    return Path(os.path.normpath(folder / Path(text.replace("\\", "/")).expanduser()))


def model_name(text: str) -> str:
    """A model's path or name as `find_model` takes it: with a drive letter, as this system writes it."""
    return str(local_path(text, Path.cwd())) if DRIVE.match(text.strip()) else text


def same_model(one: str | None, other: str | None) -> bool:
    """Whether two paths or names may be of one model, which may lie elsewhere now; None is the tiny language model."""
    names = [None if text is None else local_path(text, Path.cwd()).name for text in (one, other)]
    return names[0] == names[1]


def _value(file: Path, key: str, value: Any, kind: types.UnionType) -> Any:
    """Raises: UserError: the value is of another kind."""
    expected, _ = typing.get_args(kind)
    if value is None:
        return None
    if expected is Path and isinstance(value, str) and value.strip():
        return local_path(value, file.parent)
    if type(value) is expected:
        return value
    what = {Path: "a path", bool: "true or false", int: "a whole number"}[expected]
    raise UserError(f"{file}: {key} is {value!r}: give {what}")
