"""Features of pictures that somebody asks about, made as a gallery's were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from raymed.data.image import ImageSettings
from raymed.data.sources import Refusal, SourceSettings
from raymed.data.survey import OWN_LABELS
from raymed.errors import UserError
from raymed.models.features import FeatureExtractor, FeatureSettings
from raymed.models.vision_tower import VisionTower
from raymed.retrieval.extract import Work, compute
from raymed.retrieval.features import Features
from raymed.retrieval.parts import asked_listing, source_parts

MICRO_BATCH = 32


def query(
    path: Path, source: SourceSettings, gallery: Features, tower: VisionTower, patient: str | None = None
) -> tuple[Features, list[str]]:
    """Features of the pictures at a path, and those that cannot be used, in a line each.

    Args:
        gallery: says how; of its layers.
        tower: the gallery's ViT.
        patient: whose the pictures are (default: as the source says).

    Raises:
        UserError: there is no usable picture, the gallery does not say how it was made, or the ViT is another one than its.
    """
    made = gallery.require_manifest()
    image = ImageSettings.from_dict(made.image)
    work = Work(tower.resized(image.size), FeatureSettings(**made.settings), image)
    if work.key != made.key:
        raise UserError(
            f"{tower.source} is not the ViT of the gallery, {made.model} ({made.model_digest}): give --model, "
            "or extract the gallery's features again"
        )
    listing = asked_listing(path, source)
    parts, _ = source_parts(listing, OWN_LABELS, image)
    pairs = [pair for part in parts for pair in zip(part.rows, part.load(map), strict=True)]
    refusals = [*listing.refusals, *(result for _, result in pairs if isinstance(result, Refusal))]
    refused = [f"not used: {each.where}: {each.reason}" for each in refusals]
    usable = [(row, result) for row, result in pairs if not isinstance(result, Refusal)]
    if not usable:
        raise UserError("; ".join([f"{path}: no picture can be used", *refused]))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    extractor = FeatureExtractor(work.tower, work.settings).on(device)
    vectors = compute(extractor, [picture for _, picture in usable], MICRO_BATCH, device)

    def column(name: str) -> np.ndarray:
        return np.array([row[name] for row, _ in usable], dtype=object)

    features = Features(
        name=str(path),
        manifest=replace(made, data={"kind": listing.format, "root": str(listing.root)}, shards={}, refused=[]),
        ids=column("id"),
        patients=np.full(len(usable), patient, dtype=object) if patient else column("patient"),
        labels=column("label"),
        sources=column("source"),
        paths=column("path"),
        frames=np.array([-1 if row["frame"] is None else row["frame"] for row, _ in usable], dtype=np.int64),
        vectors={layer: each for layer, each in zip(extractor.layers, vectors, strict=True) if layer in gallery.layers},
    )
    return features, refused
