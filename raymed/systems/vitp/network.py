"""InternVL trained on conversations: every sample of a micro-batch lies in one sequence, without any padding.

Tiles go through the image backbone, the pixel shuffle and the projector; their tokens take the places that the sequence
keeps for them. A token that was dropped takes none, so that the language model has less to do; the image backbone sees all
of every picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerBase

from raymed.compat.deepspeed import is_sharded
from raymed.models import adapt
from raymed.models.answer_head import AnswerHead, Choices
from raymed.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from raymed.models.internvl import InternVL, build_network, tokenizer_of
from raymed.models.internvl_text import read_tokenizer
from raymed.models.internvl_weights import MOST_TILES, load_internvl, side, write_remote_code
from raymed.models.packed_attention import packed_kernel, packing, use_packed
from raymed.models.settings import ModelSettings

NORMALISATIONS = {  # name -> mean and standard deviation of red, green and blue
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "clip": ((0.4814546, 0.4578275, 0.40821073), (0.2686295, 0.2613025, 0.2757711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


class InternVLChat(InternVL):
    """InternVL as a language model over packed conversations."""

    most_tiles = MOST_TILES

    def __init__(
        self, network: InternVLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, normalisation: str
    ) -> None:
        vision: Any = network.config.vision_config  # which travels with the ViT, wherever it is taken
        vision.image_mean, vision.image_std = map(list, NORMALISATIONS[normalisation])
        super().__init__(network, tokenizer)
        network.lm_head = AnswerHead.of(network.lm_head)
        use_packed(network.model.language_model)

    def compute_in_float32(self) -> None:
        super().compute_in_float32()
        use_packed(self.network.model.language_model)

    @property
    def description(self) -> dict[str, str]:
        """Facts to tag a run with."""
        language_model = self.network.model.language_model
        kernel = packed_kernel(language_model, language_model.get_input_embeddings().weight)
        return super().description | {"language_attention": kernel}

    def forward(
        self,
        pixels: Tensor,
        kept: Tensor,
        image_places: Tensor,
        ids: Tensor,
        positions: Tensor,
        lengths: Tensor,
        places: Tensor,
        targets: Tensor,
        weights: Tensor,
        asked: Tensor,
        choices: Tensor,
        answers: Tensor,
        choice_weights: Tensor,
        silent: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> dict[str, Tensor]:
        """Loss of the answers of samples that lie end to end.

        Args:
            pixels: all tiles, uint8 [tiles, 3, size, size]; there may be none.
            kept: which of the tiles' tokens, counted over all tiles, are not dropped: int64 [image tokens].
            image_places: where in the sequence they go: int64 [image tokens].
            ids: token ids, int64 [total].
            positions: of each token in its own sample before anything was dropped, int64 [total].
            lengths: of the samples, int64 [samples], on the host; they sum to total.
            places: where a token is predicted that is learned, int64 [learned].
            targets: those tokens, int64 [learned].
            weights: of each in the loss, float32 [learned].
            asked, choices, answers, choice_weights, smoothing: the fields of `Choices`; there may be no question.
            silent: which tokens of the image backbone are set to zero before they are projected, those that make up one of
                the tiles' tokens side by side: bool [image tokens, 4].

        Returns:
            `loss`: weighted sum of the cross-entropies, over the vocabulary and over declared choices. Without a gradient:
            `token_losses`, float32 [learned], and `choice_losses` and the answers' `choice_log_probabilities`, float32
            [questions, most choices].
        """
        language_model = self.network.model.language_model
        embeddings = self.network.get_input_embeddings()(ids)
        if len(pixels):
            tokens = self._features(pixels, silent).flatten(0, 1)
            embeddings = embeddings.index_copy(0, image_places, tokens[kept].to(embeddings.dtype))
        elif self.training or is_sharded(next(self.parameters())):
            # All workers use the same parameters in every pass, or their collectives wait for each other: those that sum
            # gradients, and under ZeRO 3 those that gather weights. Asking a parameter by
            # its name would gather it, on this worker only.
            vision: Any = self.network.config.vision_config
            size = side(vision.image_size)
            blank = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=ids.device)
            embeddings = embeddings + 0 * self.image_features(blank).sum().to(embeddings.dtype)
        hidden = language_model(
            inputs_embeds=embeddings[None],
            position_ids=positions[None],
            use_cache=False,
            **packing(language_model, lengths, embeddings),
        ).last_hidden_state[0]
        questions = Choices(asked, choices, answers, choice_weights, smoothing)
        loss, token_losses, chosen = self.network.lm_head(hidden[places], targets, weights, questions)
        return {
            "loss": loss,
            "token_losses": token_losses,
            "choice_losses": questions.losses(chosen),
            "choice_log_probabilities": chosen,
        }

    def _features(self, pixels: Tensor, silent: Tensor | None) -> Tensor:
        """Projected image tokens, as `image_features`, of a backbone some of whose tokens are zero."""
        if silent is None:
            return self.image_features(pixels)

        def quieten(projector: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            shuffled = inputs[0]  # [tiles, tokens, 4 * width]: the pixel shuffle lays four of the backbone's in a row
            heard = ~silent.view(*shuffled.shape[:2], silent.shape[1], 1)
            return ((shuffled.unflatten(2, (silent.shape[1], -1)) * heard).flatten(2),)

        hook = self.network.model.multi_modal_projector.register_forward_pre_hook(quieten)
        try:
            return self.image_features(pixels)
        finally:
            hook.remove()

    def export_remote_code(self, folder: Path) -> None:
        """Write a checkpoint in InternVL's original layout, with merged LoRA and the tokenizer."""
        write_remote_code(adapt.merged_state(self.network), self.network.config, folder)
        self.tokenizer.save_pretrained(folder)


def build(settings: ModelSettings, size: int, normalisation: str) -> InternVLChat:
    """InternVL with its starting weights, adapted as the settings say, for pictures of size x size."""
    return InternVLChat(build_network(settings, size), tokenizer_of(settings), normalisation)


def load(folder: Path, normalisation: str) -> InternVLChat:
    """The network that `export` or `export_remote_code` wrote."""
    network = load_internvl(folder, "sdpa")  # in float32, which flash-attn does not take
    return InternVLChat(network, read_tokenizer(folder, network.lm_head.out_features), normalisation)
