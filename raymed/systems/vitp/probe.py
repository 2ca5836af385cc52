"""A labelled probe set: how well the image backbone finds pictures of the same class, while it is pretrained.

A validation loss is of answers, most of which the language model gives; the probe asks about what the ViT is for. Each of
its pictures is a query, all pictures of other patients are the gallery, and the nearest by cosine are judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from raymed.errors import UserError
from raymed.recipes.metric import Metric
from raymed.recipes.pictures import stack_pictures
from raymed.recipes.recipe import Batch, TrainingPass

if TYPE_CHECKING:
    from torch import nn

    from raymed.data.prepared import Prepared
    from raymed.data.record import Record

K = 5  # neighbours that are judged
QUERIES = 512  # compared with the whole gallery at once


@dataclass(frozen=True)
class BackboneProbe:
    """The labelled pictures of prepared data, in every split.

    Attributes:
        data: URI of the prepared data.
        digest: what they hold.
        size: side of the pictures, in pixels.
    """

    data: str
    digest: str
    size: int

    @classmethod
    def of(cls, prepared: Prepared, size: int) -> BackboneProbe:
        """The probe of prepared data, for a network that takes pictures of size x size.

        Raises:
            UserError: the pictures are of another size, or no two classes have two patients each.
        """
        probe = cls(prepared.folder.uri, prepared.digest, size)
        if prepared.size != size:
            raise UserError(
                f"the probe {probe.data} has pictures of {prepared.size} pixels, and the network takes {size}: prepare it "
                f"again with --image.size {size}"
            )
        columns = prepared.columns(probe.rows(prepared), ["label", "patient"])
        pairs = set(zip(columns["label"].tolist(), columns["patient"].tolist(), strict=True))
        several = {label for label, _ in pairs if sum(other == label for other, _ in pairs) > 1}
        if len(several) < 2:
            raise UserError(
                f"the probe {probe.data} needs two classes of two {prepared.manifest.unit}s each: a query's own "
                f"{prepared.manifest.unit} is left out of what is found, and it has {len(several)} such classes"
            )
        return probe

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (
            Metric("probe_top1", "", "max", "{:.1%}", chooses_epoch=True, chooses_trial=True),
            Metric(f"probe_map{K}", "", "max", "{:.3f}", chooses_epoch=True, chooses_trial=True),
        )

    def rows(self, prepared: Prepared) -> np.ndarray:
        """The labelled rows, ascending."""
        labels: np.ndarray = prepared.columns(np.arange(len(prepared.index)), ["label"])["label"]
        return np.flatnonzero(labels >= 0)

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        """`pixels`, uint8 [rows, 1 or 3, size, size]."""
        pixels = torch.from_numpy(stack_pictures(records, self.size))
        return Batch({"pixels": pixels}, {"loss": float(len(records))}, [record.id for record in records])

    def predict(self, module: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """`features`, float32 [rows, width]: the mean of the last layer's tokens, of length 1."""
        backbone: nn.Module = module.image_backbone
        pixels = module.normalise(batch.tensors["pixels"], module.network.model.multi_modal_projector.linear_1.weight.dtype)
        tokens = backbone(pixel_values=pixels).last_hidden_state[:, 1:]
        return {"features": F.normalize(tokens.float().mean(1), dim=1)}

    def evaluate(self, predictions: dict[str, np.ndarray], records: dict[str, np.ndarray]) -> dict[str, float]:
        """The share of pictures whose nearest of another patient is of their class, and the mean AP@5.

        Source: Manning et al. 2008, Introduction to Information Retrieval, 8.4.
        """
        from raymed.retrieval.metrics import average_precision

        vectors, labels = predictions["features"], np.asarray(records["label"])
        owners = np.unique(np.asarray(records["patient"]).astype(str), return_inverse=True)[1]
        top, precisions = [], []
        for start in range(0, len(vectors), QUERIES):
            asking = slice(start, start + QUERIES)
            own, alike = owners[asking, None] == owners, labels[asking, None] == labels
            similarity = np.where(own, -np.inf, vectors[asking] @ vectors.T)
            nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :K]
            hits = np.take_along_axis(alike & ~own, nearest, axis=1)
            top.append(hits[:, 0])
            precisions.append(average_precision(hits, (alike & ~own).sum(1)))
        return {"probe_top1": float(np.concatenate(top).mean()), f"probe_map{K}": float(np.concatenate(precisions).mean())}
