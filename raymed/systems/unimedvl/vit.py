"""The ViT that understanding sees pictures with: SigLIP's, over pictures of any size whose patches lie end to end
(Dehghani et al. 2023, NaViT, arXiv:2307.06304). Names of its weights are the checkpoint's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from raymed.systems.unimedvl.masks import attend
from raymed.systems.unimedvl.settings import VisionSizes


class Mlp(nn.Module):
    """Two layers and a GELU between: inside the ViT, and from its width to the language model's (the connector)."""

    def __init__(self, width: int, inside: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inside)
        self.fc2 = nn.Linear(inside, out)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens), approximate="tanh"))


class PatchEmbeddings(nn.Module):
    """Linear embedding of flattened patches, and a learned position for each place in the largest grid."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(3 * sizes.patch**2, sizes.hidden)
        self.position_embedding = nn.Embedding(sizes.side**2, sizes.hidden)

    def forward(self, patches: Tensor, positions: Tensor) -> Tensor:
        return self.patch_embedding(patches) + self.position_embedding(positions)


class PictureAttention(nn.Module):
    """Attention of each picture to itself."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(sizes.hidden, sizes.hidden) for _ in range(4))

    def forward(self, hidden: Tensor, counts: list[int]) -> Tensor:
        """hidden: [patches, width]; counts: patches of each picture."""
        projected = (projection(hidden) for projection in (self.q_proj, self.k_proj, self.v_proj))
        by_head = (states.unflatten(1, (self.heads, -1)).transpose(0, 1)[None] for states in projected)
        pictures = zip(*(states.split(counts, 2) for states in by_head), strict=True)
        attended = [attend(query, key, value, None)[0] for query, key, value in pictures]
        return self.out_proj(torch.cat(attended, 1).transpose(0, 1).flatten(1))


class Layer(nn.Module):
    """SigLIP's layer."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(sizes.hidden, eps=sizes.norm_eps)
        self.self_attn = PictureAttention(sizes)
        self.layer_norm2 = nn.LayerNorm(sizes.hidden, eps=sizes.norm_eps)
        self.mlp = Mlp(sizes.hidden, sizes.intermediate, sizes.hidden)

    def forward(self, hidden: Tensor, counts: list[int]) -> Tensor:
        hidden = hidden + self.self_attn(self.layer_norm1(hidden), counts)
        return hidden + self.mlp(self.layer_norm2(hidden))


class Encoder(nn.Module):
    """The layers.

    Attributes:
        gradient_checkpointing: activations are computed again in the backward pass.
    """

    gradient_checkpointing = False

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))

    def forward(self, hidden: Tensor, counts: list[int]) -> Tensor:
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                hidden = checkpoint(layer, hidden, counts, use_reentrant=False)
            else:
                hidden = layer(hidden, counts)
        return hidden


class VisionTransformer(nn.Module):
    """Patches of pictures to their tokens."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.embeddings = PatchEmbeddings(sizes)
        self.encoder = Encoder(sizes)
        self.post_layernorm = nn.LayerNorm(sizes.hidden, eps=sizes.norm_eps)

    def forward(self, patches: Tensor, positions: Tensor, counts: Tensor) -> Tensor:
        """Tokens of pictures that lie end to end.

        Args:
            patches: uint8 [patches, patch * patch * 3], colours innermost.
            positions: row * side + column of each patch, int64 [patches].
            counts: patches of each picture, int64 [pictures], on the host; they sum to all.

        Returns:
            [patches, hidden].
        """
        pixels = (patches.float() / 255 * 2 - 1).to(next(self.parameters()).dtype)
        return self.post_layernorm(self.encoder(self.embeddings(pixels, positions), counts.tolist()))


class VisionModel(nn.Module):
    """The ViT under the name that the checkpoint has for it."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.vision_model = VisionTransformer(sizes)

    def forward(self, patches: Tensor, positions: Tensor, counts: Tensor) -> Tensor:
        """As `VisionTransformer`."""
        return self.vision_model(patches, positions, counts)


def patches_of(picture: Tensor, patch: int) -> Tensor:
    """The patches of a picture, row by row, as the ViT takes them.

    Args:
        picture: uint8 [height, width, 3].

    Returns:
        uint8 [rows * columns, patch * patch * 3].
    """
    height, width, colours = picture.shape
    squares = picture.view(height // patch, patch, width // patch, patch, colours)
    return squares.transpose(1, 2).reshape(-1, patch * patch * colours)


def grid_positions(rows: int, columns: int, side: int) -> Tensor:
    """row * side + column of each place of a grid, row by row: int64 [rows * columns]."""
    return (torch.arange(rows)[:, None] * side + torch.arange(columns)).flatten()
