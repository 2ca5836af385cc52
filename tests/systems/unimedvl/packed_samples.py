"""One sample in the layout of a packed sequence, for tests of the network."""

import torch

from raymed.systems.unimedvl.modes import CAUSAL, FULL, NOISE
from raymed.systems.unimedvl.network import UniMedVL, start_weights
from raymed.systems.unimedvl.settings import PRESETS, TINY
from raymed.systems.unimedvl.tokens import TextTokens
from raymed.systems.unimedvl.vit import grid_positions, patches_of

SIZES = PRESETS[TINY]
TOKENS = TextTokens.bytes()


def tiny_network(seed: int = 0, moving: bool = True) -> UniMedVL:
    """The tiny network; `moving` gives it a velocity other than 0, as after some training."""
    torch.manual_seed(seed)
    network = UniMedVL(SIZES)
    start_weights(network, copy_understanding=False)
    if moving:
        torch.nn.init.normal_(network.llm2vae.weight, 0, 0.2)
    return network


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """uint8 [height, width, 3]."""
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def edit_sample(question: str, target: torch.Tensor, time: float, noise: torch.Tensor) -> dict[str, torch.Tensor]:
    """A picture taken in and looked at, a question, an answer, and a picture that is drawn at a time of its flow."""
    condition, seen = picture(16, 24), picture(28, 42)
    answer = TOKENS.ids("Darker.")
    text = [TOKENS.start, *TOKENS.ids(question), TOKENS.end]
    reply = [TOKENS.start, *answer, TOKENS.end]
    marks = [TOKENS.vision_start, TOKENS.vision_end]
    lengths = [2 + 6, 2 + 6, len(text), len(reply), 2 + 6]
    starts = [sum(lengths[:index]) for index in range(5)]

    def between(split: int) -> torch.Tensor:
        return torch.arange(starts[split] + 1, starts[split] + 7)

    text_places = [
        [starts[0], starts[0] + 7],
        [starts[1], starts[1] + 7],
        list(range(starts[2], starts[2] + len(text))),
        list(range(starts[3], starts[3] + len(reply))),
        [starts[4], starts[4] + 7],
    ]
    texts = len(text) + len(reply)
    positions = [0] * 8 + [1] * 8 + list(range(2, 2 + texts)) + [2 + texts] * 8
    latent_places = grid_positions(2, 3, SIZES.latent_side)
    return {
        "positions": torch.tensor(positions),
        "split_lengths": torch.tensor(lengths),
        "split_modes": torch.tensor([FULL, FULL, CAUSAL, CAUSAL, NOISE]),
        "split_samples": torch.zeros(5, dtype=torch.int64),
        "text_ids": torch.tensor([*marks, *marks, *text, *reply, *marks]),
        "text_places": torch.tensor([place for places in text_places for place in places]),
        "patches": patches_of(seen, 14),
        "patch_positions": grid_positions(2, 3, SIZES.vision.side),
        "patch_places": between(1),
        "patch_counts": torch.tensor([6]),
        "pixels": torch.cat([condition.permute(2, 0, 1).flatten(), target.permute(2, 0, 1).flatten()]),
        "latent_grids": torch.tensor([[2, 3], [2, 3]]),
        "latent_positions": torch.cat([latent_places, latent_places]),
        "latent_places": torch.cat([between(0), between(4)]),
        "times": torch.tensor([0.0] * 6 + [time] * 6),
        "noise": torch.cat([torch.zeros(6, SIZES.latent_width), noise]),
        "sampling_noise": torch.zeros(12, SIZES.latent_width),
        "targets": torch.arange(6, 12),
        "supervised": torch.arange(starts[3], starts[3] + len(reply) - 1),
        "labels": torch.tensor([*answer, TOKENS.end]),
        "label_weights": torch.ones(len(reply) - 1),
    }
