"""The job that asks about pictures: its options, one question whose answer is shown as it comes, or a file of many."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from raymed.errors import UserError
from raymed.job.command_line import Alias
from raymed.job.job import JobOptions, Outcome
from raymed.storage.folder import require_other
from raymed.systems.unimedvl.questions import read_questions
from raymed.systems.unimedvl.tool_settings import OWN_NAMES, ReadingSettings, TextSettings

if TYPE_CHECKING:
    from raymed.systems.unimedvl.pipeline import Pipeline

# What the guide's parameters are called here: those of both tools, and those of this one.
TOOLS = {
    "model-path": Alias("model"),
    "image-path": Alias("image"),
    "use-model-checkpoint": Alias("weights", {"true": "model", "false": "ema", "True": "model", "False": "ema"}),
    **{
        name.replace("_", "-"): Alias(f"reading.{name}")
        for name in ("target_gpu_device", "max_mem_per_gpu", "vit_transform_size", "vae_transform_size")
    },
    **dict.fromkeys(
        ("enable-cpu-loading", "enable-auto-bf16-conversion", "offload-folder"),
        Alias(says="ignored: weights are read once, in bf16 where the GPU has it"),
    ),
    "show-image": Alias(says="ignored: a job shows no picture; VQAInferencer does, in a notebook"),
}
GUIDE = {
    **TOOLS,
    "temperature": Alias("text.temperature"),
    "max-new-tokens": Alias("text.max_new_tokens"),
    "do-sample": Alias("text.do_sample", {"true": "true"}),
}


@dataclass(frozen=True, kw_only=True)
class VQA(JobOptions):
    """Options of asking.

    Attributes:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID, a checkpoint, or a folder of released weights.
        weights: Which of a folder's weights: ema are the averaged ones.
        image: The picture.
        prompt: What is asked about it.
        questions: A JSONL file with many questions instead.
        out: The JSONL file that their answers are written to.
        text: How answers are written.
        reading: How the model and pictures are read.
        seed: Seed of the draws; 0 draws anew each time.
    """

    SAID_AS: ClassVar[Mapping[str, str]] = OWN_NAMES
    MATTERS: ClassVar[tuple[str, ...]] = ("model", "image", "prompt", "questions", "out", "seed", "text.temperature")

    model: str
    weights: Literal["ema", "model"] = "ema"
    image: str = ""
    prompt: str = ""
    questions: str = ""
    out: str = ""
    text: TextSettings = field(default_factory=TextSettings)
    reading: ReadingSettings = field(default_factory=ReadingSettings)
    seed: int = 42

    def __post_init__(self) -> None:
        if self.questions:
            if self.prompt or self.image or not self.out:
                raise UserError("--questions goes with --out, and without --image and --prompt")
        elif not self.prompt:
            raise UserError("nothing is asked: give --image and --prompt, or --questions and --out")


def ask_one(pipeline: Pipeline, options: VQA) -> Outcome:
    """One question; its answer is printed as it comes, so that the outcome has no line to print once more."""
    pictures = [pipeline.open_picture(options.image)] if options.image else []
    started = time.perf_counter()
    parts = []
    for piece in pipeline.stream(pictures, options.prompt, options.text, options.seed):
        parts.append(piece)
        if not options.json:
            print(piece, end="", flush=True)
    if not options.json:
        print()
    answer, seconds = "".join(parts).strip(), time.perf_counter() - started
    data = {"answer": answer, "image": options.image, "prompt": options.prompt, "seed": options.seed, "seconds": seconds}
    return Outcome("", data)


def ask_many(pipeline: Pipeline, options: VQA) -> Outcome:
    """The questions of a file, each answer written as it comes."""
    require_other(options.out, options.questions)
    questions, out = read_questions(Path(options.questions)), Path(options.out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", encoding="utf-8") as file:
            for question in questions:
                pictures = [pipeline.open_picture(path) for path in question.pictures]
                answer = pipeline.answer(pictures, question.prompt, options.text, options.seed)
                file.write(json.dumps(question.line | {"answer": answer}, ensure_ascii=False) + "\n")
                file.flush()
    except OSError as error:
        raise UserError(f"cannot write {out}: {error}. Free space, or choose another --out") from error
    return Outcome(f"{len(questions)} answers: {out}", {"answers": len(questions), "out": str(out)})
