"""The gate before anything large is trained: the tiny network learns one sample of each kind by heart."""

import numpy as np
import pytest
import torch
from packed_samples import SIZES, TOKENS

from raymed.data.image import ImageSettings
from raymed.data.record import Image, Message, Record
from raymed.recipes.recipe import TrainingPass
from raymed.systems.unimedvl.autoencoder import ImageAutoencoder
from raymed.systems.unimedvl.autoencoder_fit import fit
from raymed.systems.unimedvl.network import UniMedVL, start_weights
from raymed.systems.unimedvl.pipeline import Pipeline
from raymed.systems.unimedvl.recipe import UniMedVLRecipe
from raymed.systems.unimedvl.resize import ResizeSettings
from raymed.systems.unimedvl.tool_settings import DrawingSettings, TextSettings

STEPS = 500
LOSSES = ("ce", "mse")
SMALL = {"vit": ResizeSettings(14, 28, 28), "vae": ResizeSettings(8, 32, 32)}


def smooth(seed: int, side: int) -> np.ndarray:
    """A picture without fine detail, uint8 [side, side, 3]."""
    coarse = torch.rand(1, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")[0].clamp(0, 1)
    return (fine * 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


GIVEN, EDITED, DRAWN = smooth(0, 32), smooth(1, 32), smooth(2, 32)


def as_the_vit_sees(pixels: np.ndarray) -> np.ndarray:
    from PIL import Image as Pictures

    return np.asarray(Pictures.fromarray(pixels).resize((28, 28), Pictures.Resampling.BICUBIC))


def sample(name: str, elements: list[tuple[str, str]], *pictures: Image) -> Record:
    return Record(name, name, name, 0, None, "set", pictures, tuple(Message(*element) for element in elements))


SAMPLES = [
    sample("ask", [("vit", "0"), ("human", "Which side?"), ("gpt", "Left.")], Image("input", 0, as_the_vit_sees(GIVEN))),
    sample("draw", [("human", "A lung."), ("target", "0")], Image("output", 0, DRAWN)),
    sample(
        "edit",
        [("vae", "0"), ("vit", "0"), ("human", "Remove it."), ("target", "1")],
        Image("input", 0, as_the_vit_sees(GIVEN)),
        Image("output", 0, GIVEN),
        Image("output", 1, EDITED),
    ),
]


def psnr(drawn: np.ndarray, target: np.ndarray) -> float:
    return float(-10 * np.log10(np.square((drawn.astype(float) - target) / 255).mean()))


@pytest.mark.slow
def test_one_answer_one_drawing_and_one_edit_are_learned_by_heart():
    torch.manual_seed(0)
    pictures = [torch.from_numpy(each).permute(2, 0, 1).contiguous() for each in (GIVEN, EDITED, DRAWN)]
    autoencoder = fit(ImageAutoencoder(SIZES.autoencoder, SIZES.latent_patch), pictures, steps=250)
    network = UniMedVL(SIZES)
    start_weights(network)
    network.take_autoencoder(autoencoder)
    recipe = UniMedVLRecipe(SIZES)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS)
    sums = []
    for step in range(STEPS):
        batch = recipe.encode(SAMPLES, TrainingPass(0, step))
        loss = recipe.compute_loss(network.train(), batch)
        optimizer.zero_grad()
        loss.mean(batch.units).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        sums.append({name: float(total / count) for name, (total, count) in loss.sums.items() if name in LOSSES})
    for name in LOSSES:
        first, last = (np.mean([each[name] for each in part]) for part in (sums[:20], sums[-20:]))
        assert last < 0.2 * first, name

    from PIL import Image as Pictures

    pipeline = Pipeline(network.eval(), TOKENS, SMALL["vit"], SMALL["vae"], ImageSettings(), "")
    given = Pictures.fromarray(GIVEN)
    assert pipeline.answer([given], "Which side?", TextSettings(do_sample=False)) == "Left."
    plain = DrawingSettings(cfg_text_scale=1.0, timestep_shift=1.0)
    assert psnr(np.asarray(pipeline.draw([], "A lung.", plain, seed=1)), DRAWN) > 25
    assert psnr(np.asarray(pipeline.draw([given], "Remove it.", plain, seed=1)), EDITED) > 25
