"""A loss of two terms, each with units of its own, on real processes without Ray: who computes what changes nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from worker_processes import run_workers

from raymed.recipes.recipe import Batch, Loss, LossTerm, ParameterGroup
from raymed.training.engine import Engine, TrainSettings, division
from raymed.training.means import means, sums_of
from raymed.training.process import prepare_process

CPU = torch.device("cpu")
STEPS, ROWS, WORDS, WEIGHT = 4, 8, 11, 0.25
WITHOUT_PICTURES = 2  # a step of whose rows none has latents
GOLDEN = [5.051221, 4.727888, 2.443043, 4.535891]  # losses of the steps


class Reader(nn.Module):
    """Says the next word and paints: a trunk with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.words, self.latents = nn.Linear(6, 16), nn.Linear(16, WORDS), nn.Linear(16, 4)

    def forward(self, tokens: torch.Tensor, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.words(torch.tanh(self.trunk(tokens))), self.latents(torch.tanh(self.trunk(latents)))


@dataclass(frozen=True)
class Both:
    """Cross-entropy per token and squared error per latent."""

    contrastive = False

    def build(self) -> nn.Module:
        return Reader()

    def groups(self, module: nn.Module) -> list[ParameterGroup]:
        return [ParameterGroup("all", list(module.parameters()))]

    def compute_loss(self, module: nn.Module, batch: Batch) -> Loss:
        inputs = batch.tensors
        logits, painted = module(inputs["tokens"], inputs["latents"])
        text = F.cross_entropy(logits, inputs["next"], reduction="sum")
        image = F.mse_loss(painted, inputs["targets"], reduction="none").mean(1).sum()
        return Loss({"text": LossTerm(text), "image": LossTerm(image, WEIGHT)})


def encode(rows: list[int], step: int) -> Batch:
    """Row n has 3 n + 1 tokens, every fourth none; every other row has n latents."""
    parts: dict[str, list[torch.Tensor]] = {"tokens": [], "next": [], "latents": [], "targets": []}
    for row in rows:
        draw = torch.Generator().manual_seed(100 * step + row)
        tokens = 0 if row % 4 == 1 else 3 * row + 1
        latents = 0 if step == WITHOUT_PICTURES or row % 2 == 0 else row
        parts["tokens"].append(torch.randn(tokens, 6, generator=draw))
        parts["next"].append(torch.randint(WORDS, (tokens,), generator=draw))
        parts["latents"].append(torch.randn(latents, 6, generator=draw))
        parts["targets"].append(torch.randn(latents, 4, generator=draw) + 3)
    tensors = {name: torch.cat(values) for name, values in parts.items()}
    return Batch(tensors, {"text": float(len(tensors["next"])), "image": float(len(tensors["targets"]))}, [])


def settings(micro_batch: int, zero_stage: int) -> TrainSettings:
    return TrainSettings(global_batch=ROWS, micro_batch=micro_batch, zero_stage=zero_stage, lr=1e-2, clip=0.5)  # type: ignore[arg-type]


def work(worker: int, workers: int, out: Path) -> None:
    os.environ |= {"RANK": str(worker), "LOCAL_RANK": str(worker), "WORLD_SIZE": str(workers)}
    torch.set_num_threads(1)
    prepare_process(CPU)
    dist.init_process_group("gloo", rank=worker, world_size=workers, init_method=f"file://{out}/rendezvous")
    results = {}
    for micro_batch, stage in product((1, 3, 8), (1, 2, 3)):
        engine = Engine(Both(), settings(micro_batch, stage), 10, 0, CPU)  # type: ignore[arg-type]
        divided = division(Both(), engine.module, engine.settings, workers)  # type: ignore[arg-type]
        steps = []
        for step in range(STEPS):
            share = divided.share(tuple((row,) for row in range(ROWS)), worker)
            mine = [(encode([row for (row,) in micro.packs], step), micro) for micro in share]
            engine.step(mine, step)
            steps.append(means(engine.read()[-1].sums) | {"norm": engine.gradient_norm})
        results[micro_batch, stage] = steps
    torch.save(results, out / f"results-{worker}.pt")
    dist.barrier()
    dist.destroy_process_group()


def in_one_piece() -> list[dict[str, float]]:
    """The same steps in plain torch: a global batch is one batch."""
    from raymed.training.schedule import learning_rate

    torch.manual_seed(0)
    module = Both().build()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, 10, settings(8, 1)))
    steps = []
    for step in range(STEPS):
        batch = encode(list(range(ROWS)), step)
        loss = Both().compute_loss(module, batch)
        text, image = (float(loss.terms[name].total.detach()) / max(1, batch.units[name]) for name in ("text", "image"))
        optimizer.zero_grad()
        loss.mean(batch.units).backward()
        norm = float(nn.utils.clip_grad_norm_(module.parameters(), 0.5))
        optimizer.step()
        schedule.step()
        steps.append({"loss": text + WEIGHT * image, "text": text, "image": image, "norm": norm})
    return steps


@pytest.mark.slow
def test_each_term_is_a_mean_over_its_own_units_whoever_computes_them(tmp_path):
    """Also where a micro-batch, or a whole global batch, has none of a term's units."""
    expected = in_one_piece()
    assert [step["loss"] for step in expected] == pytest.approx(GOLDEN, abs=1e-6)
    for workers in (1, 2):
        out = tmp_path / str(workers)
        out.mkdir()
        run_workers(work, (workers, out), workers)
        results: list[dict[Any, list[dict[str, float]]]] = [
            torch.load(out / f"results-{worker}.pt") for worker in range(workers)
        ]
        for result, (cut, steps) in product(results, results[0].items()):
            assert result[cut] == steps, "workers were told different figures"
            for number, (step, whole) in enumerate(zip(steps, expected, strict=True)):
                assert ("image" in step) == (number != WITHOUT_PICTURES)
                whole = {name: value for name, value in whole.items() if name in step}
                assert step == pytest.approx(whole, rel=2e-5), (workers, cut, number)


def test_the_epoch_s_loss_is_the_weighted_sum_of_its_terms_means():
    batches = [(6.0, 3.0, 8.0, 2.0), (1.0, 1.0, 0.0, 0.0)]  # sum and units of the text, sum and units of the image
    epoch: dict[str, tuple[float, float]] = {}
    for text, tokens, image, latents in batches:
        terms = {"text": LossTerm(torch.tensor(text))} | ({"image": LossTerm(torch.tensor(image), 0.5)} if latents else {})
        for name, (total, count) in sums_of(Loss(terms), {"text": tokens, "image": latents}).items():
            before = epoch.get(name, (0.0, 0.0))
            epoch[name] = (before[0] + float(total), before[1] + count)
    assert means(epoch) == {"loss": 7 / 4 + 0.5 * 8 / 2, "text": 7 / 4, "image": 4.0}


def test_a_loss_of_one_term_is_logged_once():
    logged = sums_of(Loss({"loss": LossTerm(torch.tensor(6.0))}, {"accuracy": (2.0, 4.0)}), {"loss": 4.0})
    assert means({name: (float(total), count) for name, (total, count) in logged.items()}) == {"loss": 1.5, "accuracy": 0.5}
