"""Classes of data sets, and data sets: what a configuration may name, and what users add without touching this package.

A class is a plan (sequence.py) under a key. A module of the user's own, which the configuration or `--registry` names, adds
to both tables: with the functions below, or by tables of its own called DATASET_REGISTRY and DATASET_INFO.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any

from raymed.errors import UserError
from raymed.systems.unimedvl.sequence import (
    Plan,
    by_task,
    caption_to_image,
    chained_edit,
    conditioned_reconstruction,
    counterfactual,
    edit,
    reconstruction,
    text_only,
    text_to_image,
    understanding,
    understanding_undropped,
)

INFO_KEYS = ("data_dir", "jsonl_path")
PARQUET = ("t2i_pretrain", "unified_edit")  # classes whose data sets may be Parquet files, which have no jsonl_path
UNREAD_INFO = ("num_files", "num_total_samples", "parquet_info_path", "json_dir")  # upstream's, of which nothing depends


@dataclass(frozen=True)
class DatasetInfo:
    """Where a data set lies.

    Attributes:
        jsonl_path: its lines; empty of Parquet files, which lie in `data_dir`.
        data_dir: the folder that the paths in them are relative to; empty where they name no pictures.
    """

    jsonl_path: str
    data_dir: str = ""


DATASET_REGISTRY: dict[str, Plan] = {
    "SftJSONLIterableDataset_Ver1": understanding,
    "SftJSONLIterableDataset_TextOnly": text_only,
    "SftJSONLIterableDataset_with_VisualReconstruction_Ver1": reconstruction,
    "SftJSONLIterableDataset_with_VisualReconstruction_Ver2": conditioned_reconstruction,
    "vlm_sft": understanding_undropped,
    "t2i_pretrain": caption_to_image,
    "T2IIterableDataset_Ver1": text_to_image,
    "unified_edit": chained_edit,
    "MedicalImageEditingIterableDataset_ver1": edit,
    "CounterfactualMedicalIterableDataset_ver1": counterfactual,
    "RadiologyReportDataset": by_task,
    "MyCustomMedicalDataset": by_task,
}

# Data sets of the guide's examples, where the guide has them.
DATASET_INFO: dict[str, dict[str, DatasetInfo]] = {
    "RadiologyReportDataset": {
        f"radiology_reports_{split}": DatasetInfo(f"/data/radiology/{split}_annotations.jsonl", "/data/radiology/images")
        for split in ("train", "val")
    },
}


def dataset_class(key: str) -> Callable[[Plan], Plan]:
    """Register the decorated function as the plan of a class.

    Raises:
        UserError: the key stands for another plan.
    """

    def register(plan: Plan) -> Plan:
        if inspect.isclass(plan) or not callable(plan):
            raise UserError(f"the class {key!r} must be a function from a sample to the elements of its sequence")
        known = DATASET_REGISTRY.setdefault(key, plan)
        if known is not plan and plan_digest(known) != plan_digest(plan):
            raise UserError(f"the class {key!r} is registered twice, by {_name(known)} and by {_name(plan)}")
        return plan

    return register


def dataset_info(class_key: str, name: str, info: Mapping[str, Any], where: str = "the registry") -> None:
    """Register where a data set of a class lies.

    Raises:
        UserError: `info` has no jsonl_path, or keys that mean nothing.
    """
    stored = isinstance(info, Mapping) and (
        isinstance(info.get("jsonl_path"), str) or (class_key in PARQUET and isinstance(info.get("data_dir"), str))
    )
    if not stored:
        raise UserError(f"{where}: the data set {name!r} of {class_key!r} needs a jsonl_path (and a data_dir for pictures)")
    if unknown := set(info) - {*INFO_KEYS, *UNREAD_INFO}:
        raise UserError(f"{where}: data set {name!r}: keys that mean nothing here: {', '.join(sorted(unknown))}")
    DATASET_INFO.setdefault(class_key, {})[name] = DatasetInfo(info.get("jsonl_path") or "", info.get("data_dir") or "")


def plan_of(class_key: str, where: str) -> Plan:
    """The plan of a class.

    Raises:
        UserError: there is no such class.
    """
    if class_key not in DATASET_REGISTRY:
        raise UserError(
            f"{where}: there is no class {class_key!r}; known: {', '.join(sorted(DATASET_REGISTRY))}. Register it in a "
            "module of your own (@dataset_class), and name that module with --registry"
        )
    return DATASET_REGISTRY[class_key]


def info_of(class_key: str, name: str, where: str) -> DatasetInfo:
    """Where a data set lies.

    Raises:
        UserError: it is not registered.
    """
    known = DATASET_INFO.get(class_key, {})
    if name not in known:
        raise UserError(
            f"{where}: the data set {name!r} is not registered for {class_key!r} ({', '.join(sorted(known)) or 'none is'}). "
            "Say where it lies under dataset_info in the configuration, or in a module that --registry names"
        )
    return known[name]


def plan_digest(plan: Plan) -> str:
    """Changes with the plan's source, so that data are prepared anew."""
    try:
        source = inspect.getsource(plan)
    except (OSError, TypeError):
        source = _name(plan)
    return blake2b(source.encode(), digest_size=8).hexdigest()


def register_module(name: str) -> None:
    """Import a user's module, and take in what it registers.

    Raises:
        UserError: it cannot be imported, or lies in a folder of data.
    """
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
        raise UserError(f"the registry {name!r} is no module's name: give it as in an import, e.g. my_project.datasets")
    origin = _origin(name.partition(".")[0])
    _require_elsewhere(name, origin)
    try:
        module = importlib.import_module(name)
    except Exception as error:  # whatever a user's module raises
        raise UserError(f"the registry {name} cannot be imported: {type(error).__name__}: {error}") from error
    for key, plan in dict(getattr(module, "DATASET_REGISTRY", {})).items():
        dataset_class(key)(plan)
    for class_key, sets in dict(getattr(module, "DATASET_INFO", {})).items():
        for data_set, info in dict(sets).items():
            if not isinstance(info, DatasetInfo):
                dataset_info(class_key, data_set, info, f"{name}.DATASET_INFO")
    _require_elsewhere(name, origin)
    _send_along(module)


def _origin(package: str) -> Path:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError) as error:
        raise UserError(f"the registry {package} cannot be imported: {error}") from error
    places = [spec.origin, *(spec.submodule_search_locations or [])] if spec else []
    place = next((place for place in places if place and place not in ("built-in", "frozen")), None)
    if place is None:
        raise UserError(
            f"the registry {package} cannot be imported: there is no such module. Install it, or put its folder on "
            "PYTHONPATH"
        )
    return Path(place).resolve()


def _require_elsewhere(name: str, origin: Path) -> None:
    """Refuse a module that lies below the data folder of a registered data set."""
    for info in (info for sets in DATASET_INFO.values() for info in sets.values() if info.data_dir):
        if origin.is_relative_to(Path(info.data_dir).expanduser().resolve()):
            raise UserError(
                f"the registry {name} lies among the data ({origin}): nothing is run from there. Move it elsewhere"
            )


def _send_along(module: ModuleType) -> None:
    """Let Ray's workers have the module with what is sent to them: it need not be installed there."""
    import ray

    ray.cloudpickle.register_pickle_by_value(module)


def _name(plan: Plan) -> str:
    return f"{getattr(plan, '__module__', '?')}.{getattr(plan, '__qualname__', '?')}"
