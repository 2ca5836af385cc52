"""The YAML that says which data sets are used, how their pictures are resized, and in which shares they are seen.

One entry a class. Its data sets come in named groups (the guide's layout), or as one list (BAGEL's), which is one group with
the class's name. Groups named val or test are held out.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from raymed.errors import UserError
from raymed.job.yaml_once import read_yaml
from raymed.systems.unimedvl.registry import DatasetInfo, dataset_info, info_of, plan_of, register_module
from raymed.systems.unimedvl.resize import MAX_PIXELS, VIT, ResizeSettings
from raymed.systems.unimedvl.sequence import Plan

log = logging.getLogger("raymed")


VAE = ResizeSettings(16, 1024, 512)  # of training; drawing also takes smaller pictures
RESIZE_KEYS = ("image_stride", "max_image_size", "min_image_size", "max_pixels")
CLASS_KEYS = (
    "dataset_names", "image_transform_args", "vit_image_transform_args", "weight", "num_used_data", "is_mandatory",
    "shuffle_lines", "shuffle_seed", "split", "cfg_dropout",
)  # fmt: skip
UNREAD = ("resume_data_status", "frame_sampler_args")  # upstream's: the plan resumes by itself, and there are no videos
COMMON_KEYS = ("registry", "dataset_info")  # of the file, beside the classes

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class DataSet:
    """One data set of a group, and which of its lines are used.

    Attributes:
        start, end: of the lines that are not blank, after shuffling; an end of 0 is the last one's.
    """

    name: str
    info: DatasetInfo
    start: int = 0
    end: int = 0


@dataclass(frozen=True)
class Group:
    """Data sets that are seen together.

    Attributes:
        class_key: whose plan makes the sequences.
        name: within the class.
        sets: its data sets.
        weight: its share of what is drawn, relative to the other groups'.
        mandatory: whether every pack begins with a sample of it.
        split: train, or held out as val or test.
        shuffle_seed: of its lines; None where they stay in order.
        cfg_dropout: whether all conditions of pictures to draw may be dropped.
        vit, vae: how large pictures are.
    """

    class_key: str
    name: str
    plan: Plan
    sets: tuple[DataSet, ...]
    weight: float
    mandatory: bool
    split: Split
    shuffle_seed: int | None
    cfg_dropout: bool
    vit: ResizeSettings
    vae: ResizeSettings

    @property
    def title(self) -> str:
        """How messages, sources of records, and counts name it."""
        return f"{self.class_key}/{self.name}"


@dataclass(frozen=True)
class MixtureConfig:
    """The groups of a configuration, in its order."""

    groups: tuple[Group, ...]

    @classmethod
    def read(cls, path: Path, registry: str = "", rule: Literal["sqrt", "legacy"] = "sqrt") -> MixtureConfig:
        """Read a configuration.

        Args:
            registry: a module of the user's own that registers classes and data sets; several with commas between them.
            rule: how pictures that are too large shrink.

        Raises:
            UserError: everything that is wrong with it, by file and key.
        """
        content = _mapping(path)
        entries = {key: value for key, value in content.items() if key not in COMMON_KEYS}
        located = content.get("dataset_info", {})
        _require(isinstance(located, dict), path, "dataset_info", "must have classes, and for each its data sets")
        for class_key, sets in located.items():
            _require(isinstance(sets, dict), path, f"dataset_info.{class_key}", "must have data sets by name")
            for name, info in sets.items():
                dataset_info(class_key, name, _from(path.parent, info), f"{path}: dataset_info")
        written = content.get("registry", [])
        for module in [*(written if isinstance(written, list) else [written]), *registry.split(",")]:
            if str(module).strip():
                register_module(str(module).strip())
        groups = [group for class_key, entry in entries.items() for group in _groups(path, str(class_key), entry, rule)]
        if not any(group.split == "train" for group in groups):
            raise UserError(f"{path}: no group to train on: groups named val or test are held out, unless split says train")
        if not sum(group.weight for group in groups if group.split == "train") > 0:
            raise UserError(f"{path}: the weights of the groups that are trained on sum to zero: give one a weight above 0")
        return cls(tuple(groups))

    def described(self) -> dict[str, Any]:
        """What training needs to know, by group, as plain values."""
        return {
            group.title: {
                "weight": group.weight,
                "mandatory": group.mandatory,
                "split": group.split,
                "sets": [part.name for part in group.sets],
                "vit": asdict(group.vit),
                "vae": asdict(group.vae),
            }
            for group in self.groups
        }


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path.expanduser().read_text("utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: the file does not exist. --dataset-config-file takes a YAML of data sets") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: holds no classes of data sets")
    return content


def _groups(path: Path, class_key: str, entry: object, rule: Literal["sqrt", "legacy"]) -> Iterator[Group]:
    """The groups of one class."""

    def require(condition: object, key: str, text: str) -> None:
        _require(condition, path, f"{class_key}.{key}", text)

    plan = plan_of(class_key, str(path))
    if not isinstance(entry, dict):
        raise UserError(f"{path}: {class_key} needs keys: {', '.join(CLASS_KEYS)}")
    unknown = [str(key) for key in entry if key not in (*CLASS_KEYS, *UNREAD)]
    if unknown:
        raise UserError(
            f"{path}: {class_key}: keys that mean nothing here: {', '.join(unknown)}; known: {', '.join(CLASS_KEYS)}"
        )
    names = entry.get("dataset_names")
    as_list = isinstance(names, list)
    named: dict[str, Any] = {class_key: names} if as_list else names if isinstance(names, dict) else {}
    require(named, "dataset_names", "needs groups with lists of data sets, or a list of data sets")
    only_vit = class_key == "vlm_sft" and "vit_image_transform_args" not in entry
    vit_key = "image_transform_args" if only_vit else "vit_image_transform_args"
    vit = _resize(path, class_key, vit_key, entry.get(vit_key, {}), VIT, rule)
    vae = (
        VAE
        if only_vit
        else _resize(path, class_key, "image_transform_args", entry.get("image_transform_args", {}), VAE, rule)
    )
    flags = {key: entry.get(key, False) for key in ("is_mandatory", "shuffle_lines", "cfg_dropout")}
    for key, value in flags.items():
        require(isinstance(value, bool), key, f"is {value!r}: write true or false")
    seed = entry.get("shuffle_seed", 0)
    require(
        isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0, "shuffle_seed", f"is {seed!r}: a whole number"
    )
    for key in ("weight", "num_used_data", "split"):
        if not as_list and isinstance(entry.get(key), dict):
            for group in entry[key]:
                require(group in named, f"{key}.{group}", f"names no group; there are {', '.join(named)}")
    for group, sets in named.items():
        require(isinstance(sets, list) and sets, f"dataset_names.{group}", "must be a list of data sets with at least one")
        weight = _of_group(entry, "weight", group, 1.0)
        require(_is_number(weight) and weight >= 0, "weight", f"of {group} is {weight!r}: a number from 0 up")
        split = _of_group(entry, "split", group, group if group in ("val", "test") else "train")
        require(split in ("train", "val", "test"), "split", f"of {group} is {split!r}: write train, val or test")
        ranges = _ranges(path, class_key, group, entry.get("num_used_data"), [str(name) for name in sets], as_list)
        parts = tuple(
            DataSet(str(name), info_of(class_key, str(name), str(path)), *ends)
            for name, ends in zip(sets, ranges, strict=True)
        )
        yield Group(
            class_key=class_key,
            name=str(group),
            plan=plan,
            sets=parts,
            weight=float(weight),
            mandatory=flags["is_mandatory"],
            split=split,
            shuffle_seed=seed if flags["shuffle_lines"] else None,
            cfg_dropout=flags["cfg_dropout"],
            vit=vit,
            vae=vae,
        )


def _of_group(entry: Mapping[str, Any], key: str, group: str, default: Any) -> Any:
    """A group's value of a key that holds one for each group, or one for all."""
    value = entry.get(key, default)
    return value.get(group, default) if isinstance(value, dict) else value


def _ranges(path: Path, class_key: str, group: str, value: object, names: list[str], as_list: bool) -> list[tuple[int, int]]:
    """First line and end of each data set of a group.

    In groups, two numbers are start and end, of each data set; in a list, or as a single number, counts from the first line.
    """
    where = f"{class_key}.num_used_data" + ("" if as_list else f".{group}")
    value = value.get(group) if isinstance(value, dict) else value
    if value is None:
        return [(0, 0)] * len(names)
    numbers: list[Any] = value if isinstance(value, list) else [value] * len(names)
    _require(
        all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers),
        path, where, f"is {value!r}: whole numbers from 0 up",
    )  # fmt: skip
    if not as_list and isinstance(value, list):
        _require(len(numbers) == 2, path, where, f"is {value!r}: in groups, it is [start, end], and [0, 0] means all")
        start, end = numbers
        _require(not end or start < end, path, where, f"is {value!r}: the end is not behind the start")
        if any(numbers):
            log.info("%s: lines %d to %s of each of: %s", where, start, end or "the last", ", ".join(names))
        return [(start, end)] * len(names)
    _require(len(numbers) == len(names), path, where, f"has {len(numbers)} counts for {len(names)} data sets: one for each")
    if any(numbers):
        counts = ", ".join(f"{number or 'all'} of {name}" for number, name in zip(numbers, names, strict=True))
        log.info("%s: the first lines: %s", where, counts)
    return [(0, number) for number in numbers]


def _resize(
    path: Path, class_key: str, key: str, given: object, default: ResizeSettings, rule: Literal["sqrt", "legacy"]
) -> ResizeSettings:
    _require(isinstance(given, dict), path, f"{class_key}.{key}", f"needs {', '.join(RESIZE_KEYS)}")
    values: dict[str, Any] = dict(given)  # type: ignore[call-overload]
    for name, value in values.items():
        _require(
            name in RESIZE_KEYS, path, f"{class_key}.{key}.{name}", f"means nothing here; known: {', '.join(RESIZE_KEYS)}"
        )
        if isinstance(value, str) and re.fullmatch(r"[\d_]+", value):
            values[name] = int(value.replace("_", ""))
        _require(type(values[name]) is int, path, f"{class_key}.{key}.{name}", f"is {value!r}: a whole number")
    try:
        published = {"max_pixels": MAX_PIXELS} if values else {}
        return ResizeSettings(**(asdict(default) | published | values | {"rule": rule}))
    except UserError as error:
        raise UserError(f"{path}: {class_key}.{key}: {error}") from error


def _from(folder: Path, info: object) -> dict[str, Any]:
    """A data set's places, those that are relative taken from the folder of the configuration."""
    if not isinstance(info, dict):
        return {}
    return {
        key: str(folder / Path(value).expanduser())
        if key in ("data_dir", "jsonl_path") and isinstance(value, str)
        else value
        for key, value in info.items()
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require(condition: object, path: Path, key: str, text: str) -> None:
    if not condition:
        raise UserError(f"{path}: {key} {text}")
