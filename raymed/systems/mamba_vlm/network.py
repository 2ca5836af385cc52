"""The report writer: pictures and a question in, the loss of a report or its text out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from raymed.systems.mamba_vlm.generation import generate
from raymed.systems.mamba_vlm.interaction import CrossInteraction
from raymed.systems.mamba_vlm.language_model import LanguageModel
from raymed.systems.mamba_vlm.plans import EncoderPlan
from raymed.systems.mamba_vlm.settings import BridgeSettings, GenerationSettings, InteractionSettings, VisionSettings
from raymed.systems.mamba_vlm.vision import VisionBridge


class ReportWriter(VisionBridge):
    """Encoder, bridge, perhaps an interaction with the question, and the language model that reads their tokens."""

    def __init__(
        self,
        plan: EncoderPlan,
        vision: VisionSettings,
        bridge: BridgeSettings,
        interaction: InteractionSettings,
        language: LanguageModel,
    ) -> None:
        super().__init__(plan, vision, bridge, language.config.hidden_size)
        self.cmi_connector = None
        if interaction.use:
            self.cmi_connector = CrossInteraction(
                language.config.hidden_size, interaction.states, interaction.compress_to, interaction.form
            )
        self.language_model = language.build()
        self.end = language.end

    def forward(
        self,
        tokens: Tensor,
        prompt_lengths: Tensor,
        rows: Tensor,
        positions: Tensor,
        targets: Tensor,
        pictures: Tensor | None = None,
        features: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Cross-entropy of each supervised token [learned], `token_losses`, and the visual tokens' spread, `token_std`.

        Scores are computed only where they are read. The first five arguments are those of `Captions`.

        Args:
            pictures: [batch, slices, 1, height, width], or
            features: their maps, as `VisionBridge.features` gives them.
            mask: [batch, slices, 1, height, width], where the region lies around it.
        """
        if features is None:
            assert pictures is not None
            features = self.features(pictures)
        text = self.language_model.embed(tokens)
        visual = self._interacting(self.visual_tokens(features.to(self.dtype), mask), text, prompt_lengths)
        hidden = self.language_model(torch.cat([visual.to(text.dtype), text], dim=1))
        scores = self.language_model.logits(hidden[rows, visual.shape[1] + positions])
        spread = visual.detach().float().flatten(0, 1).std(0, correction=0).mean()
        return {"token_losses": F.cross_entropy(scores, targets, reduction="none"), "token_std": spread}

    def generate(
        self,
        prompts: list[list[int]],
        features: Tensor,
        settings: GenerationSettings,
        mask: Tensor | None = None,
        headings: Sequence[Sequence[int]] = (),
    ) -> list[list[int]]:
        """The ids of each row's text.

        Args:
            prompts: ids of each row's question and newline.
            features: maps of each row's pictures, as `VisionBridge.features` gives them.
            mask: [batch, slices, 1, height, width], where the region lies around it.
            headings: ids of `settings.headers`, as `generate` takes them.
        """
        lengths = torch.tensor([len(ids) for ids in prompts])
        tokens = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
        for row, ids in enumerate(prompts):
            tokens[row, : len(ids)] = torch.tensor(ids)
        device = self.language_model.backbone.embeddings.weight.device  # perhaps another than the encoder's
        with torch.no_grad():
            visual = self.visual_tokens(features, mask).to(device)
            text = self.language_model.embed(tokens.to(device))
            visual = self._interacting(visual, text, lengths.to(device))
            known = torch.arange(text.shape[1], device=device) < lengths.to(device)[:, None]
            everywhere = known.new_ones(len(prompts), visual.shape[1])
            prefix = torch.cat([visual.to(text.dtype), text], dim=1)
            seen = torch.cat([everywhere, known], 1)
            return generate(self.language_model, prefix, seen, self.end, settings, headings)

    def _interacting(self, visual: Tensor, text: Tensor, prompt_lengths: Tensor) -> Tensor:
        """The visual tokens after they met each row's own question."""
        if self.cmi_connector is None:
            return visual
        question = torch.arange(text.shape[1], device=text.device) < prompt_lengths[:, None]
        return self.cmi_connector(visual, text.to(visual.dtype), question)
