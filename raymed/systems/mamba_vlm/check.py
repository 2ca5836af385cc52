"""One picture and a question, and the text that a checkpoint of the guide's writes about it."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from raymed.data.image import ImageError
from raymed.data.prepared import Prepared
from raymed.data.record import Message, Record
from raymed.errors import UserError
from raymed.job.command_line import Alias
from raymed.job.submitted import lasting
from raymed.storage.folder import Folder
from raymed.systems.mamba_vlm.check_settings import settled
from raymed.systems.mamba_vlm.file_names import OVERNIGHT_BEST, STAGE_1_BEST, STAGE_1_FINAL, STAGE_2_FINAL
from raymed.systems.mamba_vlm.options import GUIDE, TrainVlm
from raymed.systems.mamba_vlm.paths import local_path
from raymed.systems.mamba_vlm.settings import GenerationSettings
from raymed.tuning.space import get_setting, with_setting

if TYPE_CHECKING:
    from raymed.systems.mamba_vlm.recipe import ReportRecipe
    from raymed.systems.mamba_vlm.slices import Pictures

log = logging.getLogger("raymed")

ORDER = (STAGE_2_FINAL, STAGE_1_BEST, OVERNIGHT_BEST, STAGE_1_FINAL)  # in which checkpoints are looked for
BOUND = "lm_head 已绑定到 input_embeddings"

OWN = ("max-visual-tokens", "mamba-model")  # flags of the check itself, which tell a value that is typed from a default
CHECK_GUIDE = {name: alias for name, alias in GUIDE.items() if name not in OWN} | {
    "max-new-tokens": Alias("generation.max_new_tokens"),
    "repetition-penalty": Alias("generation.repetition_penalty"),
    "temperature": Alias("generation.temperature"),
    "top-p": Alias("generation.top_p"),
    "do-sample": Alias("generation.sample", {"true": "true", "false": "false"}),
    "no-do-sample": Alias("generation.sample", {"true": "false", "false": "true"}),
    "debug-vision": Alias(says="ignored: how far the visual tokens differ from each other is always told"),
}


@dataclass(frozen=True, kw_only=True)
class CheckOptions(TrainVlm):
    """Options of looking at what a checkpoint writes.

    Attributes:
        checkpoint: A checkpoint file of the guide's (default: in output_dir stage 2's last, stage 1's best, the overnight
            search's best or stage 1's last, whichever is there first).
        image: A NIfTI volume, a DICOM file or folder, or a picture (default: the first validation report's, of the data that
            the checkpoint was trained with unless others are named).
        mask: A mask of that volume or picture, of the same shape: the slice is the one on which it is largest.
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
        "max_visual_tokens",
        "mamba_model",
        "llm_device",
        "generation.max_new_tokens",
        "force",
    )

    checkpoint: str | None = None
    image: str | None = None
    mask: str | None = None
    question: str | None = None
    max_visual_tokens: int | None = None
    mamba_model: str | None = None
    llm_device: Literal["cpu", "auto", "cuda"] = "cpu"
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    force: bool = False
    out_dir: str = field(default_factory=lambda: lasting("outputs"))
    save_out: bool = True

    def implied(self) -> Mapping[str, Any] | Path:
        """Nothing: what flags and the YAML file say is weighed against the checkpoint, see `settled`."""
        return {}

    def completed(self) -> Self:
        """Also with what the YAML file says of what is left at its default."""
        defaults, completed = type(self)(), super().completed()
        for name, value in self.settings_in_file().items():
            if get_setting(self, name) == get_setting(defaults, name):
                completed = with_setting(completed, name, value)
        return completed

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
            "notes": list(self.notes),
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

    from raymed.systems.mamba_vlm.captions import PROMPT_TOKENS, prompt_ids
    from raymed.systems.mamba_vlm.guide_files import load_into, read_checkpoint
    from raymed.systems.mamba_vlm.kernels import described
    from raymed.systems.mamba_vlm.texts import generate_texts

    checkpoint = read_checkpoint(path)
    on_gpu = options.llm_device != "cpu" and torch.cuda.is_available()
    if options.llm_device == "cuda" and not on_gpu:
        raise UserError("--llm_device cuda: there is no GPU here; --llm_device cpu is slow and needs none")
    recipe, notes = settled(options, checkpoint, path, on_gpu)
    record, source, chosen = _record(options, recipe, checkpoint.values.get("data"))
    notes += [f"of the volume: {chosen}"] if chosen else []
    if recipe.vision.reads_masks and all(image.role != "mask" for image in record.images):
        notes.append("WARNING: the region lies around a mask, and there is none: the centre is looked at. Give --mask")
    asked = prompt_ids(recipe.language_model.tokenizer, record.messages[0].text)
    if len(asked) > PROMPT_TOKENS:
        notes.append(f"the question has {len(asked)} tokens: the first {PROMPT_TOKENS - 1} and the newline are read")
    network = recipe.build()
    report = load_into(network, checkpoint, path)
    notes.append(f"{path}: {report}")
    if report.missing:
        notes.append(f"random weights for what it lacks: {', '.join(report.missing[:3])}: train stage 2 first")
    network.eval()
    for name, part in network.named_children():  # one by one: the language model may be too large for the GPU
        of_language = name in ("language_model", "cmi_connector")
        part.to("cuda" if on_gpu or (torch.cuda.is_available() and not of_language) else "cpu")
    notes += [described(torch.device("cuda" if on_gpu else "cpu")), BOUND]
    spreads: list[float] = []
    network.bridge.register_forward_hook(lambda *call: spreads.append(float(call[-1].float().flatten(0, 1).std(0).mean())))
    text = generate_texts(recipe, network, [record], options.generation)[0]
    notes.append(f"visual tokens: standard deviation {spreads[0]:.3g} (near 0: nothing of the picture is in them)")
    del network
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Check(record, source, text, recipe, tuple(notes))


def _record(options: CheckOptions, recipe: ReportRecipe, data: str | None) -> tuple[Record, str, str]:
    """The pictures and the question, where the pictures are from, and which slices of a volume they are.

    Args:
        data: address of the prepared data that the checkpoint was trained with, where it says so.

    Raises:
        UserError: the picture cannot be read, or there is no validation report.
    """
    if options.image is not None:
        path = local_path(options.image, Path.cwd())
        mask = None if options.mask is None else local_path(options.mask, Path.cwd())
        pictures = _pictures(path, mask, recipe)
        question = options.question or _first_prompt(options, data)
        messages = (Message("human", question), Message("gpt", ""))
        return Record(path.name, "", "", 0, None, "", pictures.images, messages), str(path), pictures.chosen
    if options.mask is not None:
        raise UserError("--mask is of the volume that --image names: give both")
    own = options.data is None and options.paths is None and data is not None
    if not own and options.data is None and options.paths_file is not None:
        return _first_listed(options, options.paths_file, recipe)
    prepared = Prepared.open(str(data)) if own else options.completed().prepared()
    rows = prepared.rows("val", options.fold)
    if not len(rows):
        raise UserError(f"{prepared.folder.uri} has no validation report: give --image")
    record = next(iter(prepared.read(rows[:1])))
    if options.question is not None:
        record = replace(record, messages=(Message("human", options.question), record.messages[1]))
    return record, f"{record.id} ({prepared.folder.uri})", ""


def _first_listed(options: CheckOptions, file: Path, recipe: ReportRecipe) -> tuple[Record, str, str]:
    """The same of the first validation report that a YAML file leads to, whose picture alone is read.

    Raises:
        UserError: as `list_reports`, or it cannot be read.
    """
    from raymed.systems.mamba_vlm.radfm import list_reports
    from raymed.systems.mamba_vlm.report_files import ReportFileOptions
    from raymed.systems.mamba_vlm.report_settings import ReportSettings

    files, settings = ReportFileOptions(paths=str(file)).files(
        ReportSettings(normalize="minmax")
    )  # which reads nothing here
    listing = list_reports(files.by_split, settings, settings.read_prompts(), files.roots)
    study = next((study for study in listing.studies if listing.splits.get(study.patient) == "val"), None)
    if study is None:
        raise UserError(f"{file} leads to no validation report that can be used: give --image")
    report = study.slices[0]
    pictures = _pictures(listing.root / report.path, listing.root / report.mask if report.mask else None, recipe)
    messages = report.messages
    if options.question is not None:
        messages = (Message("human", options.question), messages[1])
    record = Record(report.id, study.patient, study.study, 0, None, study.source, pictures.images, messages)
    return record, f"{listing.root / report.path} ({report.where})", pictures.chosen


def _pictures(path: Path, mask: Path | None, recipe: ReportRecipe) -> Pictures:
    """Raises: UserError: they cannot be read."""
    from raymed.systems.mamba_vlm.slices import read_pictures

    try:
        return read_pictures(path, mask, recipe.reading)
    except ImageError as error:
        raise UserError(f"{path}: {error}") from error


def _first_prompt(options: CheckOptions, data: str | None) -> str:
    """The first question of the prompt file, or of the prepared data, or a fixed one."""
    from raymed.systems.mamba_vlm.paths import read_paths
    from raymed.systems.mamba_vlm.radfm import CaptionSettings

    file = options.paths_file
    prompts = None if file is None else read_paths(file).caption_prompt_json
    if prompts is not None:
        return CaptionSettings(prompts=str(prompts)).read_prompts()[0]
    address = options.data or data
    if address is None or not Folder.at(address).exists():
        return CaptionSettings().question
    described = Prepared.open(address).manifest.settings
    return str(next(iter(described.get("prompts", [])), described.get("question", CaptionSettings().question)))
