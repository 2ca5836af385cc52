"""What the report writer's jobs share: their options, the guide's names for them, and the data they describe."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from raymed.data.phantom import PhantomSettings
from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.job.command_line import Alias
from raymed.job.submitted import lasting
from raymed.systems.mamba_vlm.file_names import STAGE_2_BEST
from raymed.systems.mamba_vlm.first_weights import first_weights, unfinished_run
from raymed.systems.mamba_vlm.paths import local_path, read_paths, settings_of
from raymed.systems.mamba_vlm.settings import (
    BridgeSettings,
    InteractionSettings,
    LanguageSettings,
    VisionSettings,
)
from raymed.systems.options import CONFIGS, SystemOptions
from raymed.training.settings import TrainSettings

if TYPE_CHECKING:
    from raymed.recipes.recipe import Recipe
    from raymed.training.spec import RunSpec

log = logging.getLogger("raymed")

PATHS = Path("config/paths.yaml")  # of the guide, below the working folder
AUDITED = 128  # reports whose length is looked at before training
PHANTOMS = PhantomSettings(patients=1000, size=64, slices=(8, 8), difficulty=0.1)
# What the guide's flags are called here.
GUIDE = {
    "epochs": Alias("train.epochs"),
    "batch-size": Alias("train.global_batch", implies=("train.micro_batch",)),
    "lr": Alias("train.lr"),
    "max-visual-tokens": Alias("bridge.max_visual_tokens"),
    "mamba-model": Alias("llm.path"),
    "gradient-checkpointing": Alias("llm.gradient_checkpointing"),
    "save-every": Alias("train.checkpoint_steps"),
    "save-every-steps": Alias("train.checkpoint_steps"),
    "llm-8bit": Alias("llm.int8", {"true": "true", "false": "false"}),
    "use-cmi": Alias("cmi.use", {"true": "true", "false": "false"}),
    "cmi-compress-to": Alias("cmi.compress_to"),
    "roi-side": Alias("vision.roi_side"),
    "patch-size": Alias(says="ignored: pictures have the size that they were prepared with (jobs/prepare_mamba.py)"),
    "num-workers": Alias(says="ignored: pictures are decoded once, by Ray Data on every CPU"),
    "log-every-steps": Alias(says="ignored: stage 1 tells every 10th step, stage 2 every 20th; its log file has all"),
    "length-audit-samples": Alias(says="ignored: 128 reports are looked at, and it is told if max_text_len cuts any"),
    "align-vocab": Alias(says="ignored: scores beyond the tokenizer are never computed"),
    **{f"language.{name}": Alias(f"llm.{name}") for name in LanguageSettings.__dataclass_fields__},  # as they were called
    "csv": Alias("paths", says="give --data PREPARED, or a paths.yaml with caption_csv_train and caption_csv_val"),
}


@dataclass(frozen=True, kw_only=True)
class MambaOptions(SystemOptions):
    """Options of a run or search of the report writer.

    Attributes:
        data: Folder or URI of prepared reports (jobs/prepare_mamba.py); without it and without paths, phantom patients with
            reports are made and used, with the settings of configs/mamba_*phantoms.yaml where nothing else is said.
        paths: A YAML file with the guide's keys: caption_csv_train, caption_csv_val, nnunet_encoder_checkpoint, use_cmi and
            others (default: config/paths.yaml, where there is one). Without data, reports are prepared from it; flags go
            before it.
        phantom: The phantom patients used without data.
        vision: The encoder, and which of its tokens are used.
        bridge: From the encoder's map to visual tokens.
        llm: The language model.
        max_text_len: Most tokens of a question and its report together.
        output_dir: Folder for the files that the guide names.
        gradient_accumulation_steps: An optimizer step takes so many batches, one after the other (train.global_batch times
            as many reports).
        train: How it is trained; a pack is a report.
    """

    MATTERS: ClassVar[tuple[str, ...]] = (
        "data", "paths", "output_dir", "llm.path", "vision.encoder",
    )  # fmt: skip

    phantom_settings: ClassVar[Path] = CONFIGS / "mamba_phantoms.yaml"

    data: str | None = None
    paths: str | None = None
    phantom: PhantomSettings = PHANTOMS
    vision: VisionSettings = field(default_factory=VisionSettings)
    bridge: BridgeSettings = field(default_factory=BridgeSettings)
    llm: LanguageSettings = field(default_factory=lambda: LanguageSettings(path="state-spaces/mamba-2.8b-hf"))
    max_text_len: int = 512
    output_dir: str = field(default_factory=lambda: lasting("outputs"))
    gradient_accumulation_steps: int = 1
    train: TrainSettings = field(
        default_factory=lambda: TrainSettings(epochs=3, global_batch=4, micro_batch=4, lr=1e-4, warmup=0.05)
    )

    @property
    def sampling(self) -> SliceSettings:
        return SliceSettings(choice="all")

    @property
    def output(self) -> Path:
        return local_path(self.output_dir, Path.cwd())

    @property
    def paths_file(self) -> Path | None:
        """The YAML file, given or found."""
        if self.paths is not None:
            return local_path(self.paths, Path.cwd())
        return PATHS.absolute() if PATHS.is_file() else None

    def implied(self) -> Mapping[str, Any] | Path:
        """What the YAML file says; without one and without data, settings that are small enough for phantoms."""
        return self.phantom_settings if self.data is None and self.paths_file is None else self.settings_in_file()

    def settings_in_file(self) -> dict[str, Any]:
        """What the YAML file says of these options, by dotted names.

        Raises:
            UserError: the file is wrong, or names a checkpoint that was not imported.
        """
        file = self.paths_file
        if file is None:
            return {}
        paths = read_paths(file)
        if self.vision.encoder is not None:
            paths = replace(paths, nnunet_encoder_checkpoint=None)
        log.info("settings of %s count where no flag says otherwise", file)
        return {name: value for name, value in settings_of(paths, file).items() if hasattr(self, name.partition(".")[0])}

    def completed(self) -> Self:
        """With the reports of all batches of a step.

        Raises:
            UserError: there is not one.
        """
        if self.gradient_accumulation_steps < 1:
            raise UserError(f"--gradient_accumulation_steps {self.gradient_accumulation_steps}: it must be at least 1")
        reports = self.train.global_batch * self.gradient_accumulation_steps
        return replace(self, gradient_accumulation_steps=1, train=replace(self.train, global_batch=reports))

    def check_width(self, language: LanguageSettings) -> None:
        """Raises: UserError: the YAML file asks for visual tokens of another width than the language model's."""
        from raymed.systems.mamba_vlm.language_model import LanguageModel

        file = self.paths_file
        stated = None if file is None else read_paths(file).bridge_d_model
        if stated is not None and stated != (width := LanguageModel.find(language).config.hidden_size):
            raise UserError(
                f"{file}: bridge_d_model is {stated}, and the language model has the width {width}, which "
                "visual tokens take on: leave the line out"
            )

    def prepared(self) -> Prepared:
        if self.data is not None:
            return Prepared.open(self.data)
        if (file := self.paths_file) is None:
            from raymed.systems.mamba_vlm.phantoms import prepare_phantom_reports

            return prepare_phantom_reports(self.folder, self.phantom)
        from raymed.systems.mamba_vlm.report_files import ReportFileOptions
        from raymed.systems.mamba_vlm.report_settings import ReportSettings
        from raymed.systems.mamba_vlm.reports import prepare_reports

        encoder = self.vision.located().encoder
        files, settings = ReportFileOptions(paths=str(file)).files(ReportSettings(encoder=encoder))
        name = hashlib.blake2b(str(file).encode(), digest_size=3).hexdigest()
        return prepare_reports(files, self.folder.child(f"reports-{name}").uri, settings).prepared


@dataclass(frozen=True, kw_only=True)
class TrainBridge(MambaOptions):
    """Options of stage 1.

    Attributes:
        loss: masked reconstructs hidden parts of the picture; contrast finds a picture's report among others'; proxy_l2 is
            the guide's, whose best tokens are all zero.
    """

    MATTERS: ClassVar[tuple[str, ...]] = ("loss",)

    phantom_settings: ClassVar[Path] = CONFIGS / "mamba_bridge_phantoms.yaml"

    loss: Literal["masked", "contrast", "proxy_l2"] = "masked"

    def recipe(self, prepared: Prepared) -> Recipe:
        from raymed.systems.mamba_vlm.bridge_recipe import BridgeRecipe

        self.check_width(self.llm)
        return BridgeRecipe.for_data(
            prepared,
            vision=self.vision,
            bridge=self.bridge,
            language=self.llm,
            objective=self.loss,
            max_text_len=self.max_text_len,
        )


@dataclass(frozen=True, kw_only=True)
class TrainVlm(MambaOptions):
    """Options of stage 2.

    Attributes:
        cmi: The interaction of visual tokens with the question.
        vision_checkpoint: A checkpoint file of stage 1 or 2 to begin with (default: that of stage 2 in output_dir, or else
            stage 1's).
        from_scratch: Begin with random weights; an imported encoder keeps its own.
        train: How it is trained; a pack is a report.
    """

    MATTERS: ClassVar[tuple[str, ...]] = ("vision_checkpoint", "from_scratch")

    cmi: InteractionSettings = field(default_factory=InteractionSettings)
    vision_checkpoint: str | None = None
    from_scratch: bool = False
    train: TrainSettings = field(
        default_factory=lambda: TrainSettings(epochs=2, global_batch=1, micro_batch=1, lr=1e-5, warmup=0.05)
    )

    def spec(self, prepared: Prepared) -> RunSpec:
        """A run that did not end keeps its start, so that the same command goes on with it; another begins by the guide's
        rule."""
        from raymed.systems.mamba_vlm.recipe import ReportRecipe

        spec = self._unfinished_spec(prepared)
        if spec is not None:
            return spec
        spec, start = super().spec(prepared), self.first_weights()
        if not isinstance(spec.recipe, ReportRecipe):  # an overnight search of stage 1
            return spec
        if start is not None:
            log.info("begins with %s; --vision_checkpoint names another file, --from_scratch begins anew", start)
        elif self.from_scratch:
            log.info("begins with random weights, as --from_scratch has it; an imported encoder keeps its own")
        else:
            log.warning("no checkpoint of stage 1 or 2 in %s: encoder and bridge begin with random weights", self.output)
        return spec

    def _unfinished_spec(self, prepared: Prepared) -> RunSpec | None:
        """That of the last run, if it did not end and this is its command."""
        from raymed.tuning.search_name import search_names

        run = None if self.vision_checkpoint or self.from_scratch else unfinished_run(self.output)
        if run is None:
            return None
        start = None if run.start is None else str(run.start)
        try:
            spec = super(TrainVlm, replace(self, vision_checkpoint=start, from_scratch=start is None)).spec(prepared)
        except UserError:  # another command's start need not fit this one
            return None
        if run.name not in ([self.name] if self.name else search_names([spec], self.search, {})):
            return None
        log.warning(
            "%s did not end: the same command goes on with it. It began with %s; --vision_checkpoint begins another run "
            "with a file, --from_scratch anew",
            *(run.name, start or "random weights"),
        )
        return spec

    def recipe(self, prepared: Prepared) -> Recipe:
        from raymed.systems.mamba_vlm.recipe import ReportRecipe

        self.check_width(self.llm)
        start = self.first_weights()
        recipe = ReportRecipe.for_data(
            prepared,
            vision=self.vision,
            bridge=self.bridge,
            cmi=self.cmi,
            language=self.llm,
            max_text_len=self.max_text_len,
            start=None if start is None else str(self._kept(start)),
        )
        rows = prepared.rows("train", self.fold)
        sample = rows[:: -(-len(rows) // AUDITED) or 1]
        if len(sample) and (cut := recipe.count_cut(prepared.read(sample))):
            log.warning(
                "%d of %d reports have more than --max_text_len %d tokens with their question: the rest is not learned",
                *(cut, len(sample), self.max_text_len),
            )
        return recipe

    def advice(self, prepared: Prepared) -> str:
        """What can be done with the file that stage 2 leaves."""
        look = f"look at a text: python jobs/check_image_to_text.py --checkpoint {self.output / STAGE_2_BEST}"
        if not len(prepared.rows(split := prepared.judged_split)):
            return look
        return (
            f"{look}\njudge it: python jobs/evaluate_vlm.py --model {self.output / STAGE_2_BEST} "
            f"--data {prepared.folder.uri} --split {split} --out judged"
        )

    def first_weights(self) -> Path | None:
        """The checkpoint file that training begins with, by the guide's rule.

        Raises:
            UserError: as `first_weights`.
        """
        return first_weights(self.output, self.vision_checkpoint, self.from_scratch)

    def _kept(self, path: Path) -> Path:
        """A copy in the storage, where all workers find it, under its digest: training later replaces the file."""
        digest = hashlib.blake2b(path.read_bytes(), digest_size=6).hexdigest()
        if not self.folder.is_local:
            raise UserError(f"training begins with {path}, which workers must reach: give a shared folder as --storage")
        kept = Path(self.folder.path) / "starts" / f"{digest}.pt"
        if not kept.exists() and not self.dry_run:
            kept.parent.mkdir(parents=True, exist_ok=True)
            partial = kept.with_suffix(".partial")
            shutil.copyfile(path, partial)
            partial.replace(kept)
        return kept if kept.exists() else path
