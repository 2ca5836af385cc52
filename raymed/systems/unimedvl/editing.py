"""The job that edits a picture: its options, and what it writes."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from raymed.errors import UserError
from raymed.job.command_line import Alias
from raymed.job.job import JobOptions, Outcome
from raymed.storage.folder import require_other
from raymed.systems.unimedvl.asking import TOOLS
from raymed.systems.unimedvl.synthetic import marked, sheet, write_png
from raymed.systems.unimedvl.tool_settings import OWN_NAMES, DrawingSettings, ReadingSettings, TextSettings

if TYPE_CHECKING:
    from raymed.systems.unimedvl.pipeline import Pipeline

log = logging.getLogger("raymed")

# What the guide's parameters are called here.
GUIDE = {
    **TOOLS,
    "prompt": Alias("instruction"),
    **{
        name.replace("_", "-"): Alias(f"drawing.{name}")
        for name in (
            "cfg_text_scale",
            "cfg_img_scale",
            "num_timesteps",
            "timestep_shift",
            "cfg_interval",
            "cfg_renorm_type",
            "cfg_renorm_min",
        )
    },
    **dict.fromkeys(("text-do-sample", "do-sample"), Alias("text.do_sample", {"true": "true"})),
    "text-temperature": Alias("text.temperature"),
    "max-think-tokens": Alias("text.max_new_tokens"),
    "use-thinking": Alias(
        "mode", {"true": "thinking", "false": "understanding", "True": "thinking", "False": "understanding"}
    ),
}


@dataclass(frozen=True, kw_only=True)
class EditImage(JobOptions):
    """Options of editing a picture.

    Attributes:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID, a checkpoint, or a folder of released weights.
        weights: Which of a folder's weights: ema are the averaged ones.
        image: The picture.
        instruction: What is to be done with it.
        out: The PNG to write; a sheet with the input beside it is written too, as OUT-sheet.png.
        mode: What the model says before it draws: what it sees (understanding) or a plan (thinking), which are added to the
            instruction; a plan that it writes behind it, told to plan first (planning); or nothing (plain).
        image_shapes: Height and width of what is drawn (default: those of the picture, by the autoencoder's rule).
        drawing: How it is drawn.
        text: How the words before are written.
        reading: How the model and the picture are read.
        seed: Seed of all draws; 0 draws anew each time.
    """

    SAID_AS: ClassVar[Mapping[str, str]] = OWN_NAMES
    MATTERS: ClassVar[tuple[str, ...]] = (
        "model",
        "image",
        "instruction",
        "out",
        "mode",
        "drawing.cfg_text_scale",
        "drawing.cfg_img_scale",
        "seed",
    )

    model: str
    weights: Literal["ema", "model"] = "ema"
    image: str = ""
    instruction: str = ""
    out: str = "edited.png"
    mode: Literal["understanding", "thinking", "planning", "plain"] = "understanding"
    image_shapes: tuple[int, int] | None = None
    drawing: DrawingSettings = field(default_factory=DrawingSettings)
    text: TextSettings = field(default_factory=lambda: TextSettings(0.3, 800, do_sample=False))
    reading: ReadingSettings = field(default_factory=ReadingSettings)
    seed: int = 42

    def __post_init__(self) -> None:
        if not self.image or not self.instruction:
            raise UserError("an edit needs a picture and an instruction: give --image and --instruction")
        if Path(self.out).suffix.lower() != ".png":
            raise UserError(f"--out {self.out}: the picture is written as PNG, which keeps its settings; name it .png")


def edit(pipeline: Pipeline, options: EditImage) -> Outcome:
    """Edit the picture, and write it with its settings and a mark, and the sheet."""
    out = Path(options.out)
    beside = out.with_name(f"{out.stem}-sheet.png")
    for written in (out, beside):
        require_other(written, options.image)
    picture = pipeline.open_picture(options.image)
    started = time.perf_counter()
    instruction, plan = options.instruction, ""
    if options.mode == "planning":
        plan = pipeline.plan([picture], instruction, options.text, options.seed)
        log.info("%s", plan)
    elif options.mode != "plain":
        thinking = options.mode == "thinking"
        instruction = pipeline.prepare_instruction(picture, instruction, options.text, options.seed, thinking)
        log.info("%s", instruction)
    drawn = pipeline.draw(
        [picture], instruction, options.drawing, options.seed, _progress, plan=plan, shape=options.image_shapes
    )
    settings: dict[str, Any] = {
        "model": options.model,
        "weights": options.weights,
        "asked": options.instruction,
        "instruction": instruction,
        "plan": plan,
        "mode": options.mode,
        "seed": options.seed,
        **asdict(options.drawing),
    }
    write_png(marked(drawn), out, settings)
    write_png(sheet(picture, drawn), beside, settings)
    seconds = time.perf_counter() - started
    text = f"{drawn.width}x{drawn.height} pixels in {seconds:.1f} s; input and output side by side: {beside}\n{out}"
    return Outcome(text, settings | {"out": str(out), "sheet": str(beside), "seconds": seconds})


def _progress(step: int, steps: int) -> None:
    if step == steps or step % max(1, steps // 5) == 0:
        log.info("drawn: step %d of %d", step, steps)
