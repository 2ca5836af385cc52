"""Stage 1: encoder and bridge learn without a language model.

Three losses: `masked` reconstructs hidden parts of the picture, `contrast` tells which report belongs to which picture, and
`proxy_l2`, the guide's own, whose optimum is that all tokens are zero.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymed.systems.mamba_vlm.plans import EncoderPlan
from raymed.systems.mamba_vlm.settings import BridgeSettings, VisionSettings
from raymed.systems.mamba_vlm.vision import VisionBridge

Objective = Literal["masked", "contrast", "proxy_l2"]
PATCH = 4  # pixels of a token's reconstruction, in rows and in columns
SHARED_WIDTH = 128  # of the space in which pictures and reports are compared
TEMPERATURE = 0.07
COLLAPSED = 1e-3  # tokens whose mean square is below carry nothing


class BridgePretraining(VisionBridge):
    """Encoder and bridge with what a stage-1 loss needs besides.

    Args:
        table: embeddings of the language model [tokens, width], for `contrast`; they are not trained.
    """

    def __init__(
        self,
        plan: EncoderPlan,
        vision: VisionSettings,
        bridge: BridgeSettings,
        width: int,
        objective: Objective,
        table: Tensor | None = None,
    ) -> None:
        super().__init__(plan, vision, bridge, width)
        self.objective = objective
        if objective == "masked":
            self.decoder = nn.Linear(width, PATCH * PATCH)
        if objective == "contrast":
            if table is None:
                raise ValueError("contrast compares pictures with reports: it needs the language model's embeddings")
            self.words = nn.Embedding.from_pretrained(table, freeze=True)
            self.picture_head, self.text_head = nn.Linear(width, SHARED_WIDTH), nn.Linear(width, SHARED_WIDTH)

    def forward(
        self,
        pictures: Tensor | None = None,
        features: Tensor | None = None,
        mask: Tensor | None = None,
        hidden: Tensor | None = None,
        words: Tensor | None = None,
        word_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of each row, float32 [batch], `losses`; the tokens' mean square `energy` and their spread `token_std`
        (the mean over channels of the standard deviation over all tokens); for `contrast` what is compared.

        Args:
            pictures: [batch, slices, 1, height, width], or
            features: their maps, as `VisionBridge.features` gives them, but for `masked`.
            mask: the pictures' shape, where the region lies around it.
            hidden: bool [batch, slices, 1, side, side], what is hidden of each picture, for `masked`.
            words: the reports' token ids [batch, length], for `contrast`.
            word_mask: bool [batch, length], False on padding.
        """
        vectors: dict[str, Tensor] = {}
        if features is None:
            assert pictures is not None
            features = self.features(_without(pictures, hidden) if self.objective == "masked" else pictures)
        tokens = self.tokens(features.to(self.dtype), mask)
        if self.objective == "masked":
            assert pictures is not None
            losses = self._reconstruction(tokens, pictures, features, mask, hidden)
        elif self.objective == "contrast":
            vectors = self._vectors(tokens, words, word_mask)
            losses = _contrast(vectors["picture"], vectors["report"])
        else:
            losses = tokens.float().square().mean((1, 2))
        plain = tokens.detach().float()
        spread = plain.flatten(0, 1).std(0, correction=0).mean()
        return {"losses": losses, "energy": plain.square().mean(), "token_std": spread, **vectors}

    def _reconstruction(
        self, tokens: Tensor, pictures: Tensor, features: Tensor, mask: Tensor | None, hidden: Tensor | None
    ) -> Tensor:
        """Mean squared error of what was hidden, in standard deviations of the picture."""
        assert hidden is not None
        side = self.vision.target_side
        small = F.adaptive_avg_pool2d(pictures.flatten(0, 1).float(), side * PATCH)
        deviations = small - small.mean((1, 2, 3), keepdim=True)
        small = deviations / (deviations.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-6)
        patches = F.pixel_unshuffle(small, PATCH).unflatten(0, pictures.shape[:2])
        wanted = self.region(torch.cat([patches, hidden.float()], 2), features, mask).transpose(1, 2).flatten(2)
        errors = (self.decoder(tokens).float().transpose(1, 2) - wanted[:, :-1]).square().mean(1)
        return (errors * wanted[:, -1]).sum(1) / wanted[:, -1].sum(1).clamp(min=1e-6)

    def _vectors(self, tokens: Tensor, words: Tensor | None, word_mask: Tensor | None) -> dict[str, Tensor]:
        """Unit vectors of pictures and reports, float32 [batch, shared width]."""
        assert words is not None and word_mask is not None
        weights = word_mask[..., None].to(tokens.dtype)
        text = (self.words(words).to(tokens.dtype) * weights).sum(1) / weights.sum(1).clamp(min=1)
        return {
            "picture": F.normalize(self.picture_head(tokens.mean(1)).float(), dim=1),
            "report": F.normalize(self.text_head(text).float(), dim=1),
        }


def _without(pictures: Tensor, hidden: Tensor | None) -> Tensor:
    """Pictures of which parts are black."""
    assert hidden is not None
    kept = F.interpolate((~hidden).flatten(0, 1).float(), pictures.shape[-2:])
    return pictures * kept.unflatten(0, hidden.shape[:2])


def _contrast(pictures: Tensor, reports: Tensor) -> Tensor:
    """Half the cross-entropy of finding the report for a picture, and half of finding the picture for a report, [batch]."""
    scores = pictures @ reports.t() / TEMPERATURE
    own = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, own, reduction="none") + F.cross_entropy(scores.t(), own, reduction="none")) / 2
