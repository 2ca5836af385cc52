"""One picture and a question, and the text that a checkpoint of the guide's writes about it."""

from __future__ import annotations

import gc
import json
import logging
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from raymed.data.image import ImageError
from raymed.data.record import Message, Record
from raymed.errors import UserError
from raymed.job.command_line import Alias
from raymed.systems.mamba_vlm.file_names import OVERNIGHT_BEST, STAGE_1_BEST, STAGE_1_FINAL, STAGE_2_FINAL
from raymed.systems.mamba_vlm.options import GUIDE, TrainVlm
from raymed.systems.mamba_vlm.paths import local_path
from raymed.systems.mamba_vlm.settings import GenerationSettings

if TYPE_CHECKING:
    from raymed.systems.mamba_vlm.guide_files import GuideCheckpoint
    from raymed.systems.mamba_vlm.recipe import ReportRecipe

log = logging.getLogger("raymed")

ORDER = (STAGE_2_FINAL, STAGE_1_BEST, OVERNIGHT_BEST, STAGE_1_FINAL)  # in which checkpoints are looked for
GPU_CAP = 32  # visual tokens, wherever the language model is on a GPU
UNSAID = 64  # visual tokens where neither a checkpoint nor a flag says how many
BOUND = "lm_head 已绑定到 input_embeddings"

OWN = ("max-visual-tokens", "mamba-model")  # flags of the check itself, which tell a value that is typed from a default
CHECK_GUIDE = {name: alias for name, alias in GUIDE.items() if name not in OWN} | {
    "max-new-tokens": Alias("generation.max_new_tokens"),
    "repetition-penalty": Alias("generation.repetition_penalty"),
    "temperature": Alias("generation.temperature"),
    "top-p": Alias("generation.top_p"),
    "do-sample": Alias("generation.sample", {"true": "true", "false": "false"}),
    "no-do-sample": Alias("generation.sample", {"true": "false", "false": "true"}),
}


@dataclass(frozen=True, kw_only=True)
class CheckOptions(TrainVlm):
    """Options of looking at what a checkpoint writes.

    Attributes:
        checkpoint: A checkpoint file of the guide's (default: in output_dir stage 2's last, stage 1's best, the overnight
            search's best or stage 1's last, whichever is there first).
        image: A NIfTI volume, a DICOM file or folder, or a picture (default: the first validation report's).
        question: What is asked (default: the report's question; of an image the first prompt of the data, or a fixed one).
        max_visual_tokens: The most visual tokens (default: as the checkpoint was trained, or 64).
        mamba_model: The language model (default: the checkpoint's).
        llm_device: Where the language model is: on the CPU, on a GPU (cuda), or there if there is one (auto). On a GPU at
            most 32 visual tokens are used.
        generation: How the text is generated.
        force: Go on although a flag contradicts what the checkpoint was trained with.
        out_dir: Folder for a folder of this check.
        save_out: Write that folder.
    """

    MATTERS: ClassVar[tuple[str, ...]] = (
        "checkpoint",
        "image",
        "question",
        "llm_device",
        "generation.max_new_tokens",
        "force",
    )

    checkpoint: str | None = None
    image: str | None = None
    question: str | None = None
    max_visual_tokens: int | None = None
    mamba_model: str | None = None
    llm_device: Literal["cpu", "auto", "cuda"] = "cpu"
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    force: bool = False
    out_dir: str = "outputs"
    save_out: bool = True

    def find_checkpoint(self) -> Path:
        """The checkpoint that is named, or the first that is there.

        Raises:
            UserError: there is none.
        """
        if self.checkpoint is not None:
            return local_path(self.checkpoint, Path.cwd())
        for name in ORDER:
            if (self.output / name).is_file():
                return self.output / name
        raise UserError(
            f"no checkpoint in {self.output} ({', '.join(ORDER)}): train (jobs/train_vlm.py), or give --checkpoint"
        )


@dataclass(frozen=True)
class Check:
    """What was asked of what, and what came of it.

    Attributes:
        record: pictures and question; the reference as its answer, where there is one.
        source: where the picture is from.
        text: what was written; empty where the network has nothing to say.
        recipe: the network's settings.
        notes: what a person should know about it.
    """

    record: Record
    source: str
    text: str
    recipe: ReportRecipe
    notes: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """The guide's lines."""
        question, reference = (message.text for message in self.record.messages)
        return [
            *self.notes,
            f"输入图像: {self.source}",
            f"问题: {question}",
            f"生成文本: {self.text}" if self.text else "生成文本: (empty: the network abstains)",
            *([f"参考: {reference}"] if reference else []),
        ]

    def write(self, folder: Path, generation: GenerationSettings, checkpoint: Path) -> Path:
        """Write meta.json, generated.txt and slice.png into a new folder below `folder`."""
        from PIL import Image

        run = folder / f"run_{datetime.now():%Y%m%d_%H%M%S}"
        run.mkdir(parents=True, exist_ok=True)
        question, reference = (message.text for message in self.record.messages)
        meta = {
            "image": self.source,
            "question": question,
            "reference": reference or None,
            "abstained": not self.text,
            "checkpoint": str(checkpoint),
            "settings": self.recipe.settings(),
            "generation": asdict(generation),
        }
        (run / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=2), "utf-8")
        (run / "generated.txt").write_text(self.text + "\n", "utf-8")
        pixels = next(image.pixels for image in self.record.images if image.role == "input")
        Image.fromarray(pixels[:, :, 0]).save(run / "slice.png")
        return run


def check(options: CheckOptions, path: Path) -> Check:
    """Load the checkpoint, look at the picture, and write.

    Raises:
        UserError: a flag contradicts the checkpoint, the picture cannot be read, or there is no GPU where one is asked for.
    """
    import torch

    from raymed.systems.mamba_vlm.guide_files import load_into, read_checkpoint
    from raymed.systems.mamba_vlm.texts import generate_texts

    checkpoint = read_checkpoint(path)
    on_gpu = options.llm_device != "cpu" and torch.cuda.is_available()
    if options.llm_device == "cuda" and not on_gpu:
        raise UserError("--llm_device cuda: there is no GPU here; --llm_device cpu is slow and needs none")
    recipe, notes = settled(options, checkpoint, on_gpu)
    record, source = _record(options, recipe)
    network = recipe.build()
    report = load_into(network, checkpoint, path)
    notes.append(f"{path}: {report}")
    if report.missing:
        notes.append(f"random weights for what it lacks: {', '.join(report.missing[:3])}: train stage 2 first")
    network.eval()
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    for part in (network.language_model, network.cmi_connector):
        if part is not None:
            part.to("cuda" if on_gpu else "cpu")
    notes.append(BOUND)
    text = generate_texts(recipe, network, [record], options.generation)[0]
    del network
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Check(record, source, text, recipe, tuple(notes))


def settled(options: CheckOptions, checkpoint: GuideCheckpoint, on_gpu: bool) -> tuple[ReportRecipe, list[str]]:
    """The network's settings: the checkpoint's where it holds them, else the flags'; and what a person should know.

    Raises:
        UserError: a flag asks for more visual tokens or another language model than it was trained with, without --force.
    """
    from raymed.systems.mamba_vlm.recipe import ReportRecipe

    notes: list[str] = []
    stored = checkpoint.values.get("settings")
    asked, model = options.max_visual_tokens, options.mamba_model
    if asked is not None and asked < 1:
        raise UserError(f"--max_visual_tokens {asked}: it must be at least 1")
    if stored is None:
        language = options.language if model is None else replace(options.language, path=model)
        completed = replace(options, from_scratch=True, vision_checkpoint=None, language=language).completed()
        described = completed.recipe(completed.prepared())
        assert isinstance(described, ReportRecipe)
        recipe = described
        cap = asked or UNSAID
    else:
        recipe = ReportRecipe.of_settings(stored)
        stage_2 = stored["recipe"] == recipe.name  # stage 1 was trained on all tokens: any cap is as good as another
        cap = recipe.bridge.max_visual_tokens if stage_2 else asked or UNSAID
        if model is not None and model != recipe.language.path and Path(model).name != Path(recipe.language.path or "").name:
            _contradiction(options, notes, f"--mamba_model {model}: the checkpoint was trained with {recipe.language.path}")
            recipe = replace(recipe, language=replace(recipe.language, path=model).located())
        if asked is not None and asked > cap:
            _contradiction(options, notes, f"--max_visual_tokens {asked}: the checkpoint was trained with {cap}")
        if asked is not None and asked < cap:
            notes.append(f"WARNING: {asked} visual tokens in place of the {cap} of training: texts may be worse")
        cap = asked or cap
    if on_gpu and cap > GPU_CAP:
        notes.append(f"WARNING: at most {GPU_CAP} visual tokens with the language model on a GPU, in place of {cap}")
        cap = GPU_CAP
    language = recipe.language
    if options.language.int8:
        language = replace(language, int8=True, freeze=True)
    return replace(recipe, bridge=replace(recipe.bridge, max_visual_tokens=cap), language=language, start=None), notes


def _contradiction(options: CheckOptions, notes: list[str], what: str) -> None:
    if not options.force:
        raise UserError(f"{what}. Leave the flag out, or say --force")
    notes.append(f"WARNING: {what}")


def _record(options: CheckOptions, recipe: ReportRecipe) -> tuple[Record, str]:
    """The pictures and the question, and where the pictures are from.

    Raises:
        UserError: the picture cannot be read, or there is no validation report.
    """
    if options.image is not None:
        from raymed.systems.mamba_vlm.slices import read_pictures

        path = local_path(options.image, Path.cwd())
        try:
            pictures = read_pictures(path, None, recipe.reading)
        except ImageError as error:
            raise UserError(f"{path}: {error}") from error
        question = options.question or _first_prompt(options)
        messages = (Message("human", question), Message("gpt", ""))
        return Record(path.name, "", "", 0, None, "", pictures.images, messages), str(path)
    prepared = options.completed().prepared()
    rows = prepared.rows("val", options.fold)
    if not len(rows):
        raise UserError(f"{prepared.folder.uri} has no validation report: give --image")
    record = next(iter(prepared.read(rows[:1])))
    if options.question is not None:
        record = replace(record, messages=(Message("human", options.question), record.messages[1]))
    return record, f"{record.id} ({prepared.folder.uri})"


def _first_prompt(options: CheckOptions) -> str:
    """The first question of the prompt file, or a fixed one."""
    from raymed.systems.mamba_vlm.paths import read_paths
    from raymed.systems.mamba_vlm.radfm import CaptionSettings

    file = options.paths_file
    prompts = None if file is None else read_paths(file).caption_prompt_json
    if prompts is None:
        return CaptionSettings().question
    return CaptionSettings(prompts=str(prompts)).read_prompts()[0]
