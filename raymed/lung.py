"""What the lung jobs share: their options, and the run those describe."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from raymed.data.phantom import VERSION, PhantomSettings, write_phantoms
from raymed.data.plan import SliceSettings
from raymed.data.prepare import PrepareSettings, prepare
from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.job import JobOptions
from raymed.models.settings import ModelSettings
from raymed.recipes.augment import AugmentSettings
from raymed.recipes.lung import LossSettings, LungRecipe
from raymed.storage import Folder
from raymed.training.engine import TrainSettings
from raymed.training.loop import FitSpec
from raymed.tuning.night import Night, SearchSettings
from raymed.tuning.study import Budget

log = logging.getLogger("raymed")


@dataclass(frozen=True, kw_only=True)
class LungOptions(JobOptions):
    """Options of a lung training run or search.

    Attributes:
        data: Folder or URI of prepared data (jobs/prepare_lung.py); without it, phantom patients are made and used.
        phantom: The phantom patients used without --data.
        phantom_size: Height and width of the prepared phantom slices, in pixels.
        name: Name of the run or search; the same name goes on with it (default: system and a digest of settings and data).
        fresh: Start again: forget an earlier run of that name.
        fold: Cross-validation fold to validate on (default: the stored split).
        workers: Training workers of one run, each with a GPU where there are GPUs.
        slices: Which slices of a patient are used.
        model: The network.
        loss_settings: The loss.
        augment: How training pictures are varied.
        train: How it is trained.
        search: Search space, early stopping and resources of trials.
        refit: Train the winner again on more rows: train and val (trainval) or every split (all).
    """

    data: str | None = None
    phantom: PhantomSettings = field(default_factory=PhantomSettings)
    phantom_size: int = 112
    name: str = ""
    fresh: bool = False
    fold: int | None = None
    workers: int = 1
    slices: SliceSettings = field(default_factory=SliceSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    loss_settings: LossSettings = field(default_factory=LossSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    refit: Literal["none", "trainval", "all"] = "none"

    def prepared(self) -> Prepared:
        """The prepared data: those named, or the embedded phantom patients, made on first use."""
        if self.data is not None:
            return Prepared.open(self.data)
        return prepare_phantoms(self.folder, self.phantom, self.phantom_size)

    def night(self, prepared: Prepared, budget: Budget) -> Night:
        """The run or search that the options describe; a single run is a search of one trial in an empty space."""
        recipe = LungRecipe.for_data(prepared.labels, prepared.size, self.model, self.loss_settings, self.augment)
        if not len(prepared.rows("train", self.fold)) or not len(prepared.rows("val", self.fold)):
            raise UserError(f"{prepared.folder.uri} has no train or no val patients: it can be predicted, not trained on")
        template = FitSpec(
            name="",
            storage=self.folder.uri,
            data=prepared.folder.uri,
            recipe=recipe,
            train=self.train,
            slices=self.slices,
            fold=self.fold,
            seed=self.seed,
            workers=self.workers,
        )
        described = json.dumps([dataclasses.asdict(template), dataclasses.asdict(self.search), prepared.digest], default=str)
        name = self.name or f"{recipe.name}-{hashlib.blake2b(described.encode(), digest_size=3).hexdigest()}"
        command = shlex.join(["python", *sys.argv])
        night = Night(dataclasses.replace(template, name=name), self.search, budget, self.tracking, command)
        if self.fresh and not self.dry_run:
            night.forget()
        return night


def prepare_phantoms(storage: Folder, phantom: PhantomSettings, size: int) -> Prepared:
    """Make and prepare the embedded patients under the storage; what is there already is kept."""
    described = hashlib.blake2b(repr((VERSION, phantom, size)).encode(), digest_size=3).hexdigest()
    scratch = storage if storage.is_local else Folder.at(Path.home() / ".raymed")
    source = Path(scratch.path) / f"phantom-{described}" / "patients"
    log.info("phantom patients: %d of them in %s", phantom.patients, source)
    write_phantoms(source, phantom)
    settings = PrepareSettings()
    settings = dataclasses.replace(settings, image=dataclasses.replace(settings.image, size=size))
    return prepare(source, f"{storage.uri}/phantom-{described}/prepared", settings).prepared
