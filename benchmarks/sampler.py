"""What a drawn picture costs: branches of the guidance in one batch against one by one, conditions read once against again.

    python benchmarks/sampler.py       # a small network; with a GPU the preset unimedvl-0.5b

Conditions that are read anew go through ViT, autoencoder and decoder again, those of each branch by itself, as without a
cache. On the CPU it is the process's own time that counts, so that other work beside it does not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from machine import show

from raymed.systems.unimedvl.context import Context, look_at, read_latents, read_text, take_in
from raymed.systems.unimedvl.network import UniMedVL, start_weights
from raymed.systems.unimedvl.sampler import Contexts, draw, guide, scheduler
from raymed.systems.unimedvl.settings import PRESETS, SMALL, TINY, LanguageSizes, NetworkSizes, VisionSizes
from raymed.systems.unimedvl.tokens import TextTokens
from raymed.systems.unimedvl.tool_settings import DrawingSettings

TOKENS = TextTokens.bytes()
TEXT = [TOKENS.start, *TOKENS.ids("Remove what is in the left lung, and leave the heart as it is."), TOKENS.end]
ROUNDS = 3
LANGUAGE = LanguageSizes(264, hidden=256, layers=6, heads=8, key_value_heads=2, intermediate=704, rope_theta=1e4)
ON_CPU = replace(PRESETS[TINY], language=LANGUAGE, vision=VisionSizes(64, 2, 2, 128, side=16), latent_side=16)


def read(network: UniMedVL, vit: torch.Tensor, vae: torch.Tensor, each: bool = False) -> Contexts:
    """What a picture is drawn from, read; branches share what they have in common unless `each` is read by itself."""

    def pictures() -> Context:
        return look_at(network, take_in(network, Context.empty(network), TOKENS, vae), TOKENS, vit)

    seen = pictures()
    full, _ = read_text(network, pictures() if each else seen, TEXT)
    alone, _ = read_text(network, Context.empty(network), TEXT)
    return Contexts(full, seen, alone)


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Median time of an action."""
    times = []
    for _ in range(ROUNDS + 1):
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        started = clock()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - started)
    return statistics.median(times[1:])  # the first warms up


def measure(sizes: NetworkSizes, device: torch.device) -> None:
    torch.manual_seed(0)
    network = UniMedVL(sizes)
    start_weights(network)
    network = network.to(device).eval()
    grids = sizes.grids
    side, seen = grids.latent_side * grids.latent_stride, grids.vit_side * grids.vit_patch
    vit = torch.randint(0, 256, (seen, seen, 3), dtype=torch.uint8)
    vae = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8)
    tokens = grids.latent_side**2
    noise = torch.randn(tokens, sizes.latent_width, device=device)
    settings = DrawingSettings()
    with torch.no_grad():
        contexts = read(network, vit, vae)
        batch = Context.stack(contexts)

        def step(context: Context) -> torch.Tensor:
            times = torch.full((tokens,), 0.5, device=device)
            last, _ = read_latents(network, context, TOKENS, noise, times, grids.latent_side, grids.latent_side)
            return network.llm2vae(last)

        together = seconds(lambda: guide(list(step(batch)), settings), device)
        apart = seconds(lambda: guide([step(each)[0] for each in contexts], settings), device)

        def drawn(again: bool) -> None:
            side = grids.latent_side
            if not again:
                draw(network, read(network, vit, vae), TOKENS, side, side, settings, noise)
                return
            for _ in scheduler(settings).timesteps:
                guide(list(step(Context.stack(read(network, vit, vae, each=True)))), settings)

        once = seconds(lambda: drawn(False), device)
        anew = seconds(lambda: drawn(True), device)
    conditions = contexts.full.tokens
    show(
        "A picture drawn",
        [
            f"{tokens} latent tokens, {conditions} tokens of conditions, {settings.num_timesteps} timesteps",
            f"guided step   {together * 1e3:.1f} ms in one batch, {apart * 1e3:.1f} ms one by one: {together / apart:.2f}",
            f"picture       {once:.2f} s, conditions read once; {anew:.2f} s, anew in each step: {anew / once:.1f} times",
        ],
        {"together": together, "apart": apart, "once": once, "anew": anew},
    )


if __name__ == "__main__":
    gpu = torch.cuda.is_available()
    for sizes in (PRESETS[SMALL],) if gpu else (PRESETS[TINY], ON_CPU):
        measure(sizes, torch.device("cuda" if gpu else "cpu"))
