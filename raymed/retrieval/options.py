"""Options of computing features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from raymed.job.command_line import Alias
from raymed.job.job import JobOptions
from raymed.models.settings import FeatureSettings
from raymed.retrieval.input import OWN_NAMES, Input

GUIDE = {
    "image-dir": Alias("input"),
    "output": Alias("out"),
    "vit-checkpoint": Alias("model"),
    "batch-size": Alias("micro_batch"),
    "select-layer": Alias("features.layer"),
}


@dataclass(frozen=True, kw_only=True)
class ExtractFeatures(JobOptions, Input):
    """Options of computing features.

    Attributes:
        model: A ViT (jobs/extract_vit.py), or any model that has one: a folder, a file, models:/NAME@ALIAS, runs:/RUN_ID.
        out: Folder or URI of the features. A name that ends in .npz stands for that folder without the ending, and the file.
        format: npz writes OUT.npz as well, with the keys features and image_paths of the last layer.
        features: Which layer, and how it becomes one vector.
        micro_batch: Pictures that the ViT sees at once.
        workers: Ray actors, each with a GPU where there are GPUs; 1 computes in this process.
    """

    SAID_AS: ClassVar[Mapping[str, str]] = OWN_NAMES

    model: str
    out: str
    format: Literal["parquet", "npz"] = "parquet"
    features: FeatureSettings = field(default_factory=FeatureSettings)
    micro_batch: int = 32
    workers: int = 1
