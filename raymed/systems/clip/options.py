"""What the CLIP jobs share: their options, and the data, classes and texts those describe."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from raymed.data.image import ImageSettings
from raymed.data.labels import LabelTable
from raymed.data.phantom import PhantomSettings
from raymed.data.plan import SliceSettings
from raymed.data.prepared import MANIFEST, Prepared
from raymed.data.settings import PrepareSettings
from raymed.data.sources import SourceSettings
from raymed.data.split import SplitSettings
from raymed.data.survey import Survey, survey
from raymed.errors import UserError
from raymed.job.command_line import Alias
from raymed.models.settings import ClipModelSettings
from raymed.storage.folder import Folder
from raymed.systems.clip.class_texts import ClassTexts, class_texts, read_class_texts, tell_missing
from raymed.systems.clip.settings import ClipAugmentSettings, ClipLossSettings
from raymed.systems.options import SystemOptions, prepare_phantoms
from raymed.training.settings import TrainSettings

if TYPE_CHECKING:
    from raymed.systems.clip.recipe import ClipRecipe

log = logging.getLogger("raymed")

PHANTOMS = PhantomSettings(patients=96, size=128, slices=(6, 6), difficulty=0.2)
SMALL: dict[str, Any] = {
    "size": 96,
    "model.image_encoder": "small-cnn",
    "model.text_encoder": "characters",
    "model.embed_dim": 64,
    "augment.preset": "none",
    "train.epochs": 12,
    "train.lr": 2e-3,
    "train.precision": "fp32",
}

# What the guide's flags, and the keys of its configuration files, are called here.
GUIDE = {
    "data-dir": Alias("data"),
    "image-encoder": Alias("model.image_encoder"),
    "image-encoder-name": Alias("model.image_encoder"),
    "text-encoder": Alias("model.text_encoder"),
    "text-encoder-name": Alias("model.text_encoder"),
    "embed-dim": Alias("model.embed_dim"),
    "temperature": Alias("model.temperature"),
    "batch-size": Alias(
        "train.global_batch",
        implies=("train.norm_group", "train.micro_batch"),
        says="as many pictures meet in batch norms and in the contrast (--train.norm_group), and as many go through the "
        "network at once (--train.micro_batch: fewer save memory)",
    ),
    "epochs": Alias("train.epochs"),
    "learning-rate": Alias("train.lr"),
    "weight-decay": Alias("train.weight_decay"),
    "img-size": Alias("size"),
    "augmentation": Alias("augment.preset"),
    "loss": Alias("loss.kind"),
    "weight-method": Alias("slices.class_weights"),
    "weight-smooth-factor": Alias("slices.smoothing"),
    "class-texts-dict": Alias("class_texts"),
    "no-amp": Alias("train.precision", {"true": "fp32", "false": "amp"}),
    "use-amp": Alias("train.precision", {"true": "amp", "false": "fp32"}),
    "no-save-best": Alias("save_best", {"true": "false", "false": "true"}),
    "random-state": Alias("seed"),
    "early-stopping-patience": Alias("train.patience", {"null": "0"}),
    "early-stopping-min-delta": Alias("train.min_delta"),
    "early-stopping-monitor": Alias("train.patience_monitor"),
    "patients": Alias("source.patients"),
    "patient-regex": Alias("source.patient_regex"),
    "num-workers": Alias(says="ignored: pictures are decoded once, by Ray Data on every CPU, and not by workers of a run"),
    "gpu-id": Alias(says="ignored: Ray gives every run a free GPU; --workers says how many one run takes"),
}


@dataclass(frozen=True, kw_only=True)
class ClipOptions(SystemOptions):
    """Options of a CLIP training run or search.

    Attributes:
        data: Folder with one folder of images for each class, or prepared data; without it, phantom patients are made and
            used, and what is left at its default is made small.
        seed: Seed of splits, order, augmentation, starting weights and search.
        phantom: The phantom patients used without --data.
        source: How the images are read.
        image: How pictures are made eight bits and square: what 16-bit values mean, for one; their size follows from `size`.
        max_quarantine: Stop when more than this share of the images, or of the patients, cannot be used.
        folds: Who may not be in two folds: a patient, or, as plain stratified folds have it, only an image.
        split: Shares of train/val/test patients; patients in test are in no fold.
        n_splits: Cross-validation folds.
        size: Height and width of the pictures that the network sees, in pixels.
        text_template: Text of a class, with {class_name} in it (default: the class name).
        class_texts_file: JSON file from class to text, or to a list of texts; it goes before the template.
        class_texts: The same, in a settings file.
        model: The two towers.
        loss: The loss.
        augment: How training pictures are varied.
        slices: Which pictures of a patient are used.
        train: How it is trained: the learning rate falls along a cosine from the first step on.
    """

    MATTERS: ClassVar[tuple[str, ...]] = (
        "data", "source.patients", "text_template", "class_texts_file",
        "model.image_encoder", "model.text_encoder", "augment.preset",
    )  # fmt: skip
    CAN_REFIT: ClassVar[bool] = True
    SAID_AS: ClassVar[Mapping[str, str]] = {"image.size": "size", "split.weights": "split", "split.folds": "n_splits"}

    data: str | None = None
    seed: int = 42
    phantom: PhantomSettings = PHANTOMS
    source: SourceSettings = field(default_factory=lambda: SourceSettings(format="classes"))
    image: ImageSettings = field(default_factory=ImageSettings)
    max_quarantine: str = "5%"
    folds: Literal["patient", "stratified"] = "patient"
    split: str = "80/20/0"
    n_splits: int = 5
    size: int = 224
    text_template: str | None = None
    class_texts_file: str | None = None
    class_texts: ClassTexts = field(default_factory=dict)
    model: ClipModelSettings = field(default_factory=ClipModelSettings)
    loss: ClipLossSettings = field(default_factory=ClipLossSettings)
    augment: ClipAugmentSettings = field(default_factory=ClipAugmentSettings)
    slices: SliceSettings = field(default_factory=lambda: SliceSettings(choice="all"))
    train: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            epochs=100,
            global_batch=32,
            micro_batch=32,
            norm_group=32,
            lr=1e-4,
            weight_decay=0.01,
            warmup=0.0,
            final_lr=0.0,
            precision="amp",
        )
    )

    @property
    def sampling(self) -> SliceSettings:
        return self.slices

    def prepared(self) -> Prepared:
        """The prepared data: those named, or made on first use from class folders or phantom patients.

        Raises:
            UserError: the data cannot be prepared, or were prepared at another size.
        """
        from raymed.data.prepare import prepare
        from raymed.systems.clip.crops import prepared_size

        size = prepared_size(self.size)
        folds = self.n_splits if self.n_splits > 1 else 0
        usual = type(self)()
        named = ("source", "image", "max_quarantine", "folds", "split")
        given = [name for name in named if getattr(self, name) != getattr(usual, name)]
        if self.image.size != usual.image.size:
            raise UserError(f"image.size is {self.image.size}: give --size, which leaves a tenth more to crop from")
        if self.data is None:
            if given:
                raise UserError(f"--{', --'.join(given)} cannot be followed by phantom patients: give --data")
            log.info("no --data: phantom patients, and small settings where nothing else is said: --print-config shows them")
            return prepare_phantoms(self.folder, self.phantom, size, folds)
        if Folder.at(self.data).exists(MANIFEST):
            prepared = Prepared.open(self.data)
            if given:
                raise UserError(
                    f"--{', --'.join(given)} cannot be followed: {self.data} is prepared, which settles patients and splits"
                )
            if prepared.size != size:
                raise UserError(
                    f"{self.data} was prepared at {prepared.size} pixels, and --size {self.size} needs {size} "
                    "(a tenth more to crop from): prepare it at that size, or name the folder of images"
                )
            return prepared
        source = self.source
        if self.folds == "stratified":
            source = dataclasses.replace(source, patients=None, patient_regex=None)
        settings = PrepareSettings(
            **{each.name: getattr(source, each.name) for each in dataclasses.fields(source)},
            seed=self.seed,
            image=dataclasses.replace(self.image, size=size),
            split=SplitSettings(self.split, folds),
            max_quarantine=self.max_quarantine,
            labels="source",
        )
        path = Path(self.data).expanduser().resolve()
        found = survey(path, settings, settings.labels)
        self.check_source(found)  # texts, towers and folds are checked before pictures are read
        described = hashlib.blake2b(repr((path, settings)).encode(), digest_size=3).hexdigest()
        return prepare(path, self.folder.child(f"images-{described}").uri, settings).prepared

    def check_source(self, found: Survey) -> None:
        """Raises: UserError: the classes do not fit the texts, or the towers."""
        self._recipe(found.labels)

    def log_data_summary(self, prepared: Prepared) -> None:
        """Lines that say what the images became: of whom they are, and what was left out."""
        from raymed.registry.model_card import near_duplicates

        manifest, images = prepared.manifest, len(prepared.index)
        patients = sum(sum(splits.values()) for splits in manifest.patients.values())
        log.info("%d images of %d patients in %d classes", images, patients, len(prepared.labels.names))
        if patients == images and not (self.source.patients or self.source.patient_regex):
            log.info("every image counts as a patient of its own; --patients or --patient-regex say who has several")
        if manifest.quarantined:
            log.warning("%d images cannot be used: %s/quarantine.jsonl", manifest.quarantined, prepared.folder.uri)
        if manifest.near_duplicates:
            log.info("%s", near_duplicates(prepared))

    def recipe(self, prepared: Prepared) -> ClipRecipe:
        tell_missing(prepared.labels.names, self.text_template, self._given_texts())
        return self._recipe(prepared.labels)

    def check_folds(self, prepared: Prepared) -> None:
        """Make sure that every class has a patient in each fold.

        Raises:
            UserError: it has not, or the data were prepared for another number of folds.
        """
        if self.n_splits < 2:
            raise UserError(f"--n-splits {self.n_splits}: a cross-validation has at least 2 folds")
        columns = prepared.index.select(["patient", "label", "fold"]).to_pydict()
        rows = [row for row in zip(*columns.values(), strict=True) if row[2] is not None]
        if not rows:
            raise UserError(f"{prepared.folder.uri} was prepared without folds: prepare it again with split.folds")
        names, sizes = prepared.labels.names, Counter({patient: label for patient, label, _ in rows}.values())
        self._require_patients({name: sizes[label] for label, name in enumerate(names)})
        count = max(fold for *_, fold in rows) + 1
        if count != self.n_splits:
            raise UserError(
                f"{prepared.folder.uri} was prepared with {count} folds, not {self.n_splits}: give "
                f"--n-splits {count}, or prepare it again with split.folds"
            )

    def _require_patients(self, sizes: Mapping[str, int]) -> None:
        """Args: sizes: patients of each class."""
        smallest = min(sizes, key=lambda name: sizes[name])
        if sizes[smallest] < self.n_splits:
            raise UserError(
                f"{self.n_splits} folds need a patient of each class in every one, and the class {smallest!r} "
                f"has {sizes[smallest]} patients. Change --n-splits, or add images"
            )

    def implied(self) -> Mapping[str, Any] | Path:
        """Without data of one's own, settings that are small enough for phantoms and a CPU."""
        small = SMALL if self.data is None else {}
        return {**small, **super().implied()}  # type: ignore[dict-item]

    def _recipe(self, labels: LabelTable) -> ClipRecipe:
        from raymed.systems.clip.recipe import ClipRecipe

        texts = class_texts(labels.names, self.text_template, self._given_texts())
        return ClipRecipe.for_data(labels, self.size, texts, self.model, self.loss, self.augment)

    def _given_texts(self) -> Mapping[str, str | list[str]]:
        if self.class_texts_file is None:
            return self.class_texts
        return read_class_texts(Path(self.class_texts_file).expanduser()) | self.class_texts


def _watching_accuracy() -> TrainSettings:
    return dataclasses.replace(ClipOptions().train, monitor="val_acc")


@dataclass(frozen=True, kw_only=True)
class TrainClip(ClipOptions):
    """Options of CLIP training.

    Attributes:
        output_dir: Folder for configuration, checkpoints and history (default: a folder of the run's in the storage).
        use_cv: Cross-validation: one run for each fold.
        multi_config: Train every configuration in --config-file.
        config_file: JSON list of configurations, each with the options that differ from those given here.
        resume_from: Go on from this .pth file, with its texts where none are given; an interrupted run goes on by itself
            when it is started again.
        force: With --resume-from, go on although settings that change what is learned are not the file's.
        save_best: Write checkpoint_best.pth as well.
        train: How it is trained: the learning rate falls along a cosine from the first step on.
    """

    MATTERS: ClassVar[tuple[str, ...]] = (
        "output_dir", "use_cv", "multi_config", "config_file", "resume_from", "train.epochs", "train.patience",
    )  # fmt: skip

    output_dir: str | None = None
    use_cv: bool = False
    multi_config: bool = False
    config_file: str | None = None
    resume_from: str | None = None
    force: bool = False
    save_best: bool = True
    train: TrainSettings = field(default_factory=_watching_accuracy)

    def check_source(self, found: Survey) -> None:
        """Raises: UserError: the classes do not fit the texts, the towers, or the folds."""
        super().check_source(found)
        if self.use_cv:
            owners = {(study.patient, found.class_of(study)) for study in found.studies}
            sizes = Counter(label for _, label in owners)
            self._require_patients({name: sizes[label] for label, name in enumerate(found.labels.names)})

    @property
    def says_texts(self) -> bool:
        """Whether the texts of classes are given in any way."""
        return bool(self.text_template or self.class_texts_file or self.class_texts)

    def check_modes(self) -> None:
        """Raises: UserError: options that do not go together."""
        if self.config_file and not self.multi_config:
            raise UserError("--config-file is read in the mode --multi-config: add that, or leave the file out")
        if self.multi_config and not self.config_file:
            raise UserError("--multi-config needs --config-file FILE.json, see configs/train_clip_config.json")
        if self.resume_from and (self.use_cv or self.multi_config):
            raise UserError(
                "--resume-from is for a single run; folds and configurations go on when the command is run again"
            )
        if self.force and not self.resume_from:
            raise UserError("--force is for --resume-from: leave it out")
        for name, metric in (("monitor", self.train.monitor), ("patience_monitor", self.train.patience_monitor)):
            if metric not in ("val_acc", "val_loss", ""):
                raise UserError(f"train.{name} is {metric}: history.json has val_acc and val_loss to choose by")
        if self.train.validate_steps:
            raise UserError("CLIP's files and histories count epochs: leave train.validate_steps out")
        if self.use_cv and self.fold is not None:
            raise UserError("--use-cv trains every fold: leave --fold out")
