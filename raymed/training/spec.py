"""What a training run is determined by, and what follows from that: its rows, its plan, what it may go on from."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from raymed.data.micro_batches import Division
from raymed.data.plan import EpochPlan, Sampling, SliceSettings, plan_epoch
from raymed.data.prepared import Prepared
from raymed.data.usage import Usage
from raymed.errors import CommonError, UserError
from raymed.models.pretrained import by_contents, fingerprint, held_by, pretrained_of
from raymed.recipes.metric import LAST, Metric
from raymed.recipes.recipe import Recipe
from raymed.storage.folder import Folder
from raymed.training.checkpoint import JUDGED
from raymed.training.settings import TrainSettings
from raymed.training.start import StartWeights


@dataclass(frozen=True)
class RunSpec:
    """Everything a training run is determined by.

    Attributes:
        name: name of the run, and of its folder in `storage`; the same name goes on with the same run.
        storage: URI of the folder that holds the run's folder.
        data: URI of the prepared data.
        data_digest: what they hold; empty where that is not asked.
        pretrained: what the weights hold that the recipe names, by their paths; empty where that is not asked.
        start: weights to begin with, in place of the recipe's own.
        recipe: the system to train.
        train: how.
        sampling: which rows of a split an epoch uses, and which of them are seen together.
        fold: cross-validation fold to validate on; None for the stored split.
        train_on: splits whose rows are trained on; a refit takes val and test too, so its val_loss says nothing and its last
            weights are kept.
        stop_after: stop after this epoch, or step where validations are counted by steps, on the schedule of the whole run
            (0 = train to its end).
        seed: of weights, order, draws.
        workers: number of Ray Train workers; the most where `min_workers` is given.
        min_workers: fewest workers to go on with while machines are missing (0 = `workers`).
        generation: of the search that the run is part of; empty where it does not matter.
    """

    name: str
    storage: str
    data: str
    recipe: Recipe
    train: TrainSettings
    sampling: Sampling = field(default_factory=SliceSettings)
    fold: int | None = None
    train_on: tuple[str, ...] = ("train",)
    stop_after: int = 0
    seed: int = 0
    workers: int = 1
    min_workers: int = 0
    generation: str = ""
    data_digest: str = ""
    pretrained: Mapping[str, str] = field(default_factory=dict)
    start: StartWeights | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"--workers is {self.workers}: it takes at least 1")
        if not 0 <= self.min_workers <= self.workers:
            raise UserError(f"between {self.min_workers} and {self.workers} workers is no range: write it as --workers 1:4")
        able = [metric.name for metric in (*self.recipe.metrics, LAST) if metric.chooses_epoch]
        if self.train.monitor not in able:
            raise UserError(
                f"train.monitor is {self.train.monitor}: the best epoch of {self.recipe.name} is chosen by one of "
                f"{', '.join(able)}"
            )
        if self.train.patience_monitor not in ["", *able]:
            raise UserError(f"train.patience_monitor is {self.train.patience_monitor}: it is one of {', '.join(able)}")

    @property
    def monitor(self) -> Metric:
        """What the best epoch is chosen by."""
        return self._metric(self.train.monitor)

    @property
    def watched(self) -> Metric:
        """What early stopping waits for an improvement of."""
        return self._metric(self.train.patience_monitor or self.train.monitor)

    def _metric(self, name: str) -> Metric:
        return next(metric for metric in (*self.recipe.metrics, LAST) if metric.name == name)

    @property
    def folder(self) -> Folder:
        return Folder.at(self.storage).child(self.name)

    def settings(self) -> dict[str, Any]:
        """What decides the results of a run, and stays what it was when the run goes on: of pretrained weights what they
        hold, and not where they lie."""
        begin = {"digest": self.start.digest, "new": list(self.start.new)} if self.start else ""
        deciding = {"train": self.train.deciding(), "sampling": str(self.sampling), "seed": self.seed, "start": begin}
        settings: dict[str, Any] = by_contents({**self.recipe.settings(), **deciding}, self.pretrained)
        return settings

    def origin(self) -> dict[str, Any]:
        """What a checkpoint of the run comes from."""
        bound: dict[str, Any] = {"fold": self.fold, "train_on": self.train_on} | (
            {"generation": self.generation} if self.generation else {}
        )
        bound |= {"data": self.data_digest} if self.data_digest else {}
        bound[JUDGED] = asdict(self.sampling.validation)
        plain: dict[str, Any] = json.loads(json.dumps(self.settings() | bound, default=str))
        return plain

    @property
    def is_refit(self) -> bool:
        return self.train_on != ("train",)

    def helpful(self, workers: int) -> int:
        """The fewest workers that are as fast as so many: none of them idles in a whole global batch."""
        group = self.train.norm_group if self.recipe.contrastive else 0
        return Division(self.train.packs_at_once, workers, group, self.recipe.contrastive).helpful(self.train.global_batch)

    @property
    def weights(self) -> dict[str, str]:
        """What pretrained weights hold, by the names of the settings that say where they lie."""
        return held_by(self.recipe.settings(), self.pretrained)

    def check_pretrained(self) -> None:
        """Refuse weights on this machine that are others than the run began with.

        Raises:
            CommonError: both fingerprints.
        """
        for path in pretrained_of(self.recipe) if self.pretrained else ():
            if (now := fingerprint(path)) != self.pretrained[path]:
                raise CommonError(
                    f"{path} on {socket.gethostname()} holds {now}, and the run began with {self.pretrained[path]}: the "
                    "same weights must lie on every machine of the cluster, and stay there while a run goes on"
                )

    def open_data(self) -> Prepared:
        """The prepared data that the run began with.

        Raises:
            CommonError: they were prepared again, and are others now.
        """
        return Prepared.open(self.data, self.data_digest)

    def reach_data(self) -> Prepared:
        """As `open_data`, where a run begins.

        Raises:
            OSError: the data, which were there, are missing: their storage is away.
        """
        return Prepared.reach(self.data, self.data_digest) if self.data_digest else self.open_data()

    def rows(self, prepared: Prepared, split: str, epoch: int | None = None) -> np.ndarray:
        """The chosen rows of a split, ascending; `epoch` matters where epochs differ."""
        return self.sampling.choose(prepared, prepared.rows(split, self.fold), self.seed, epoch)

    def usage(self, prepared: Prepared) -> Usage:
        """Whom an epoch trains on, and whom it is validated on."""
        there = {split: rows for split in {*self.train_on, "val"} if len(rows := prepared.rows(split, self.fold))}
        return Usage.of(prepared, {split: self.rows(prepared, split) for split in there}, there)

    def all_rows(self, prepared: Prepared, whole: bool = False, training: bool = True) -> np.ndarray:
        """Every row that any epoch of the run may read, ascending.

        Args:
            whole: whatever the run's sampling.
            training: those that are trained on, too, and not only those it is validated on.
        """
        splits = sorted({*(self.train_on if training else ()), "val"})
        if whole or self.sampling.redraws:
            return np.sort(np.concatenate([prepared.rows(split, self.fold) for split in splits]))
        return np.sort(np.concatenate([self.rows(prepared, split) for split in splits]))

    def total_steps(self, prepared: Prepared) -> int:
        """Optimizer steps of the whole schedule."""
        return self.train.steps or len(self.plan(prepared, 0).batches) * self.train.epochs

    def is_whole_epoch(self, prepared: Prepared) -> bool:
        """Whether the run sees every row that an epoch's plan names."""
        return not self.train.steps or self.train.steps >= len(self.plan(prepared, 0).batches)

    def length(self, prepared: Prepared) -> int:
        """How far the whole run goes, as its validations are counted: in epochs, or in steps."""
        if self.train.validate_steps:
            return self.total_steps(prepared)
        return -(-self.train.steps // len(self.plan(prepared, 0).batches)) or self.train.epochs

    def plan(self, prepared: Prepared, epoch: int) -> EpochPlan:
        parts = [prepared.rows(split, self.fold) for split in self.train_on]
        drawn = self.sampling.draw(prepared, parts, self.seed, epoch)
        return plan_epoch(drawn.packs, self.train.global_batch, self.seed, epoch, drawn.left_out, fill_rate=drawn.fill_rate)
