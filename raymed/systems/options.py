"""What the jobs of every system share: options of a training run or search, and the run or search those describe.

Options are read, and explained by ``--help``, without what trains: modules that hold options import it where they use it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from raymed.data.image import PIXEL_RULE, ImageSettings
from raymed.data.phantom import VERSION, PhantomSettings, write_phantoms
from raymed.data.plan import Sampling
from raymed.data.prepared import Prepared
from raymed.data.settings import PrepareSettings
from raymed.data.split import SplitSettings
from raymed.errors import UserError
from raymed.job.command_line import Alias, Aliases
from raymed.job.job import JobOptions, command
from raymed.language import say
from raymed.recipes.metric import LAST
from raymed.storage.folder import Folder
from raymed.training.settings import StartSettings, TrainSettings
from raymed.tuning.budget import Budget, deadline
from raymed.tuning.settings import KeepCheckpoints, SearchSettings

if TYPE_CHECKING:
    from raymed.recipes.recipe import Recipe
    from raymed.training.spec import RunSpec
    from raymed.training.start import StartWeights
    from raymed.tuning.search import Search

log = logging.getLogger("raymed")

CONFIGS = Path(__file__).parents[2] / "configs"
LONGEST_NAME = 200  # bytes: file systems take 255, and notes beside a run add a few
NO_ALIAS = "A model of it is registered under no alias unless --alias is given"

Searching = TypeVar("Searching", bound="SystemOptions")  # and SearchOptions


@dataclass(frozen=True, kw_only=True)
class SystemOptions(JobOptions, ABC):
    """Options of a training run or search.

    Attributes:
        phantom: The phantom patients used without --data.
        name: Name of the run or search; the same name goes on with it (default: system and a digest of settings and data).
        resume: Go on with an earlier run of that name if there is one (auto), forget it and start again (never), or end with
            an error if there is none (must).
        keep_checkpoints: Of each run the best and the two newest (best), every one (all), or, once a search is judged, the
            champion's only: no other trial can be promoted then (champion).
        fold: Cross-validation fold to validate on (default: the stored split).
        workers: Training workers of one run, each with a GPU where there are GPUs; 1:4 takes as many as there is room for.
            Those that would make a step no shorter are not started.
        min_workers: Fewest workers a single run goes on with when machines are lost; as they return it grows again to
            `workers` (0 = as many as `workers`).
        train: How it is trained.
        start: What it starts from.
        search: Search space, early stopping and resources of trials.
    """

    MATTERS: ClassVar[tuple[str, ...]] = (*("name", "resume", "workers", "fold", "train.global_batch", "train.lr"),)
    CAN_REFIT: ClassVar[bool] = False  # whether test patients say what a winner was worth before it is trained on them
    ALIASES: ClassVar[Aliases] = {
        "start.from": Alias("start.weights"),  # `from` is a word of Python's
        "max-steps": Alias("train.steps"),  # as trainers call it
    }

    phantom: PhantomSettings = field(default_factory=PhantomSettings)
    name: str = ""
    resume: Literal["auto", "never", "must"] = "auto"
    keep_checkpoints: KeepCheckpoints = "best"
    fold: int | None = None
    workers: int = 1
    min_workers: int = 0
    train: TrainSettings = field(default_factory=TrainSettings)
    start: StartSettings = field(default_factory=StartSettings)
    search: SearchSettings = field(default_factory=SearchSettings)

    def implied(self) -> Mapping[str, Any] | Path:
        """See `raymed.job.command_line.Implying`: how long a search's trials are."""
        return {"train.epochs": self.max_epochs} if isinstance(self, SearchOptions) else {}

    @abstractmethod
    def prepared(self) -> Prepared:
        """The prepared data: those named, or the embedded phantom patients, made on first use."""

    @abstractmethod
    def recipe(self, prepared: Prepared) -> Recipe:
        """The system that the options describe, for these data."""

    @property
    @abstractmethod
    def sampling(self) -> Sampling:
        """Which rows an epoch uses, and which of them are seen together."""

    def spec(self, prepared: Prepared) -> RunSpec:
        """The run that the options describe, without its name.

        Raises:
            UserError: there is nothing to train on, or, for a search, to validate on.
        """
        from raymed.models.pretrained import fingerprint, pretrained_of
        from raymed.training.spec import RunSpec

        if not len(prepared.rows("train", self.fold)):
            raise UserError(f"{prepared.folder.uri} has no train patients: it can be predicted, not trained on")
        train = self.train
        if not len(prepared.rows("val", self.fold)):
            train = self._unvalidated(prepared)
        if prepared.image.rule != PIXEL_RULE:
            log.warning(
                "%s was prepared by pixel rule %d, and this raymed reads files by rule %d: a model that is trained on it "
                "cannot be asked about files. Prepare the data again",
                *(prepared.folder.uri, prepared.image.rule, PIXEL_RULE),
            )
        recipe = self.recipe(prepared)
        spec = RunSpec(
            name="",
            storage=self.folder.uri,
            data=prepared.folder.uri,
            data_digest=prepared.digest,
            start=self._start_weights(),
            recipe=recipe,
            pretrained={path: fingerprint(path) for path in pretrained_of(recipe)},
            train=train,
            sampling=self.sampling,
            fold=self.fold,
            seed=self.seed,
            workers=self.workers,
            min_workers=self.min_workers,
        )
        if self.sampling != self.sampling.unlimited:
            log.warning("a limit leaves patients out: %s. %s", spec.usage(prepared), say(NO_ALIAS))
        return spec

    def _unvalidated(self, prepared: Prepared) -> TrainSettings:
        """How a run is trained that nobody validates: to its end, whose network is kept.

        Raises:
            UserError: it is a search, which has nothing to compare trials by.
        """
        where = f"{prepared.folder.uri} has no val {prepared.manifest.unit}s"
        if isinstance(self, SearchOptions) or self.search.space:
            raise UserError(
                f"{where}, and a search compares its trials by them: prepare it again with some, such as "
                "--split.weights 75/25/0, or name a --fold. What the search finds can then be trained on "
                "everything"
            )
        log.warning(
            "%s: all are trained on. There is no val_loss and no early stopping, and the network of the last epoch is kept; "
            "how good it is, and how sure, nobody knows: it gets no intervals and no temperature, and is not registered",
            where,
        )
        return dataclasses.replace(self.train, monitor=LAST.name, patience=0, patience_monitor="")

    def _start_weights(self) -> StartWeights | None:
        """The weights that a run begins with, where its workers find them."""
        if self.start.weights is None:
            return None
        from raymed.registry.address import resolve_model
        from raymed.tracking.tracker import Tracker
        from raymed.training.start import StartWeights

        uri = self.start.weights
        if re.fullmatch("[0-9a-f]{32}", uri):
            uri = f"runs:/{uri}"
        resolved = resolve_model(uri, Tracker.open(self.tracking))
        start = StartWeights.of(resolved.network, self.start.parts, None if self.dry_run else self.folder)
        log.info("starts from the weights of %s (digest %s)", resolved.name, start.digest)
        return start

    def open_search(self, prepared: Prepared, budget: Budget) -> Search:
        """The run or search that the options describe; a single run is a search of one trial in an empty space."""
        return self.named_search(self.spec(prepared), budget)

    def named_search(self, template: RunSpec, budget: Budget, variants: Mapping[str, RunSpec] | None = None) -> Search:
        """A search from `template`, or the listed runs, under the name that settings and data give it."""
        from raymed.models.pretrained import fingerprint, pretrained_of
        from raymed.tuning.search import Search
        from raymed.tuning.search_name import search_names
        from raymed.tuning.searched_data import PART, SearchedData
        from raymed.tuning.space import check_drawn, located, with_setting

        if self.name and (len(self.name.encode()) > LONGEST_NAME or {"", ".", ".."} & set(self.name.split("/"))):
            raise UserError(f"--name {self.name[:30]!r} cannot name a folder: give a short one without .. or a / at its end")
        listed = dict(variants or {})
        elsewhere = ("train.", f"{self.sampling.option}.", PART)
        of_recipe = located(
            {name: each for name, each in self.search.space.items() if not name.startswith(elsewhere)}, template.recipe
        )
        check_drawn(of_recipe, template.recipe)
        settings = dataclasses.replace(self.search, space={**self.search.space, **of_recipe})
        searched = {
            path: fingerprint(path)
            for name, dimension in of_recipe.items()
            for choice in dimension.choices
            if isinstance(choice, str)
            for path in pretrained_of(with_setting(template.recipe, name, choice))
            if path == choice
        }
        template = dataclasses.replace(template, pretrained={**template.pretrained, **searched})
        names = [self.name] if self.name else search_names([template, *listed.values()], settings, searched)
        if settings.space and template.train.monitor == "val_loss":
            template = dataclasses.replace(template, train=dataclasses.replace(template.train, monitor=settings.objective))
        if not self.dry_run:
            self.folder.check_writable()
        data = SearchedData.of(
            settings.space, self.phantom, lambda phantom: dataclasses.replace(self, phantom=phantom).prepared()
        )
        searches = [
            Search(
                dataclasses.replace(template, name=name),
                *(settings, budget, self.tracking, command(), listed, self.keep_checkpoints, data),
            )
            for name in names
        ]
        search = next((each for each in searches if each.has_begun), searches[0])
        for uri in {spec.data for spec in (template, *listed.values())}:
            if f"{uri}/".startswith(f"{search.template.folder.uri}/"):
                raise UserError(
                    f"the run's folder would be {search.template.folder.uri}, where the prepared data lie: give "
                    "another --name"
                )
        if self.resume == "must" and not search.has_begun:
            raise UserError(
                f"there is no earlier run named {search.name!r} under {self.folder.uri}. Check --name and --storage"
            )
        if self.resume == "never" and not self.dry_run:
            search.forget()
        return search


def for_search(options: Searching) -> Searching:
    """The options with `max_epochs` as the epochs of a trial.

    Raises:
        UserError: train.epochs says something else.
    """
    searched: Any = options  # SearchOptions too
    most, given = searched.max_epochs, options.train.epochs
    if given not in (type(options)().train.epochs, most):
        raise UserError(f"train.epochs {given} is for single runs: leave it out, and say --max-epochs, which is {most} now")
    return dataclasses.replace(options, train=dataclasses.replace(options.train, epochs=most))


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options that say how long a search may take.

    Attributes:
        trials: Most trials.
        max_epochs: Most epochs of a trial, in place of train.epochs; train.steps is in place of both.
        epochs: Most epochs over all trials (0 = no limit).
        hours: Most hours, interruptions not counted; the search ends in time for judging the winner, and training it again
            (0 = no limit).
        until: End at this time of day instead, such as 07:00; given again, it means the night in which it began.
        timezone: Time zone of `until`, such as Europe/Berlin (default: that of the machine the job runs on; a cluster's is
            mostly UTC).
        refit: Train the winner again on more rows: train and val (trainval) or every split (all).
        alias: Name that the registered winner gets (default: champion; none where a limit left patients out of training).
    """

    MATTERS: ClassVar[tuple[str, ...]] = ("trials", "max_epochs", "hours", "until", "refit")

    trials: int = 20
    max_epochs: int = 10
    epochs: int = 0
    hours: float = 0.0
    until: str = ""
    timezone: str = ""
    refit: Literal["none", "trainval", "all"] = "none"
    alias: str | None = None

    @property
    def budget(self) -> Budget:
        from raymed.registry.alias import require_alias

        if self.trials < 1 or self.epochs < 0 or self.hours < 0:
            raise UserError("--trials must be at least 1, --epochs and --hours at least 0 (which is no limit)")
        require_alias(self.alias)
        end = deadline(self.until, self.timezone)
        return Budget(self.trials, self.epochs, end, self.timezone, self.hours * 3600, self.until, refit=self.refit)


def prepare_phantoms(storage: Folder, phantom: PhantomSettings, size: int, folds: int = 5) -> Prepared:
    """Make and prepare the embedded patients under the storage; what is there already is kept."""
    from raymed.data.prepare import prepare

    described = hashlib.blake2b(repr((VERSION, phantom, size, folds)).encode(), digest_size=3).hexdigest()
    scratch = storage if storage.is_local else Folder.at(Path.home() / ".raymed")
    storage.check_writable()
    source = Path(scratch.path) / f"phantom-{described}" / "patients"
    log.info("phantom patients: %d of them in %s", phantom.patients, source)
    write_phantoms(source, phantom)
    settings = PrepareSettings(image=ImageSettings(size=size), split=SplitSettings(folds=folds))
    return prepare(source, storage.child(f"phantom-{described}/prepared").uri, settings).prepared
