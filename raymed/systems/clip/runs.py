"""The runs that a CLIP training job stands for: one, the folds of a cross-validation, or many configurations from a file."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from raymed.data.image import recorded
from raymed.data.prepared import Prepared
from raymed.data.sources.paths import read_text
from raymed.errors import UserError
from raymed.job.command_line import Aliases
from raymed.job.mistakes import did_you_mean
from raymed.recipes.metric import LAST, Metric
from raymed.systems.clip.checkpoint import CONFIG, stored_texts
from raymed.systems.clip.options import TrainClip
from raymed.systems.clip.output import RunOutput, write_json
from raymed.systems.clip.result import Result
from raymed.systems.clip.resume import PREPARED, PRETRAINED, deciding, is_same
from raymed.training.spec import RunSpec
from raymed.tuning.budget import Budget
from raymed.tuning.search import LISTED, Search
from raymed.tuning.space import get_setting, with_setting

log = logging.getLogger("raymed")

RUN = "run"  # name of the only run
OF_THE_JOB = (  # options that an entry of a configuration file cannot have of its own
    "output_dir", "multi_config", "config_file", "resume_from", "force", "storage", "tracking_uri", "dry_run", "json",
    "name", "resume", "keep_checkpoints", "search", "workers", "min_workers",
)  # fmt: skip


@dataclass(frozen=True)
class Configuration:
    """One configuration: a run, or one for each fold.

    Attributes:
        name: of its folder; empty for the only one.
        options: its settings.
        prepared: its data.
        specs: its runs, by name: ``run``, or ``fold_1`` and so on, after the configuration's own name.
    """

    name: str
    options: TrainClip
    prepared: Prepared
    specs: dict[str, RunSpec]

    @classmethod
    def of(cls, options: TrainClip, name: str = "") -> Configuration:
        """Raises: UserError: data, texts, model or folds do not fit."""
        prepared = options.prepared()
        if not options.use_cv:
            return cls(name, options, prepared, {name or RUN: options.spec(prepared)})
        options.check_folds(prepared)
        spec = dataclasses.replace(options, fold=0).spec(prepared)
        folds = range(options.n_splits)
        before = f"{name}-" if name else ""
        specs = {f"{before}fold_{fold + 1}": dataclasses.replace(spec, fold=fold) for fold in folds}
        return cls(name, options, prepared, specs)

    def called(self, name: str) -> Configuration:
        """The same under another name."""
        specs = {f"{name}{run.removeprefix(self.name)}": spec for run, spec in self.specs.items()}
        return dataclasses.replace(self, name=name, specs=specs)

    @property
    def digest(self) -> str:
        """Of what decides its results, wherever it stands in a file."""
        config = self.describe()
        settings = json.dumps(deciding(config, config[PRETRAINED]), sort_keys=True)
        return hashlib.blake2b(settings.encode(), digest_size=3).hexdigest()

    @property
    def monitor(self) -> Metric:
        """What the best epoch of each run is chosen by."""
        return next(iter(self.specs.values())).monitor

    def start(self, output: Path) -> None:
        """Write the configuration into its folder."""
        write_json(output / self.name / CONFIG, self.describe())

    def outputs(self, output: Path, search: Search) -> dict[str, RunOutput]:
        """The output folder of each run of the search."""
        folder = output / self.name
        found = {}
        for number, name in enumerate(self.specs, start=1):
            fold = {"fold": number} if self.options.use_cv else {}
            where = folder / f"fold_{number}" if fold else folder
            spec = search.run_spec(0, {LISTED: name})
            found[name] = RunOutput(where, spec, self.describe() | fold, self.options.save_best)
        return found

    def describe(self) -> dict[str, Any]:
        """What config.json says: the guide's keys, then every setting."""
        spec = next(iter(self.specs.values()))
        options, train, model = self.options, spec.train, self.options.model
        described = {
            "image_encoder": model.image_encoder,
            "text_encoder": model.text_encoder,
            "embed_dim": model.embed_dim,
            "batch_size": train.global_batch,
            "epochs": train.epochs,
            "learning_rate": train.lr,
            "weight_decay": train.weight_decay,
            "temperature": model.temperature,
            "img_size": options.size,
            "augmentation": options.augment.preset,
            "random_state": options.seed,
            "use_cv": options.use_cv,
            "n_splits": options.n_splits,
            "use_amp": train.precision == "amp",
            "save_best": options.save_best,
            "early_stopping_patience": train.patience or None,
            "early_stopping_min_delta": train.min_delta,
            "early_stopping_monitor": train.patience_monitor or train.monitor,
            "text_template": options.text_template,
            "class_texts_file": options.class_texts_file,
            "folds": options.folds,
            "data": options.data or self.prepared.folder.uri,
            "data_digest": self.prepared.digest,
            "unit": self.prepared.manifest.unit,
            "image": recorded(self.prepared.image),
            "version": version("raymed"),
            "recipe": spec.recipe.settings(),
            PRETRAINED: dict(spec.pretrained),
            PREPARED: self.prepared.manifest.settings,
            "train": asdict(train),
            "slices": asdict(options.slices),
            "fold": options.fold,
        }
        plain: dict[str, Any] = json.loads(json.dumps(described))
        return plain


def list_configurations(options: TrainClip, aliases: Aliases) -> tuple[list[Configuration], list[str]]:
    """What is to be trained, and what is wrong with those configurations that cannot be.

    Raises:
        UserError: options that do not go together, or nothing that can be trained.
    """
    options.check_modes()
    if options.resume_from and not options.says_texts:
        options = dataclasses.replace(options, class_texts=stored_texts(Path(options.resume_from).expanduser()))
    if not options.config_file:
        return [Configuration.of(options)], []
    path = Path(options.config_file).expanduser()
    found: list[Configuration] = []
    entries: dict[str, int] = {}  # by what decides them
    wrong = []
    for number, each in enumerate(read_configurations(path, options, aliases), start=1):
        try:
            if isinstance(each, UserError):
                raise each
            each.check_modes()
            configuration = Configuration.of(each, f"{each.model.image_encoder}_{Path(each.model.text_encoder).name}")
            if (digest := configuration.digest) in entries:
                raise UserError(f"it is entry {entries[digest]} once more: leave it out, or change it")
            entries[digest] = number
            if found and (configuration.monitor == LAST) != (found[0].monitor == LAST):
                raise UserError(
                    "some entries have validation patients and some have none, so that they cannot be compared. Give "
                    "those without in a file of their own"
                )
            found.append(configuration)
        except UserError as error:
            where = f"{path}, entry {number}"
            wrong.append(f"{where}: {error}")
            log.warning("not trained: %s", wrong[-1])
    if not found:
        raise UserError("\n".join(wrong))
    return _named(found, Path(options.output_dir).expanduser() if options.output_dir else None), wrong


def _named(configurations: Sequence[Configuration], output: Path | None) -> list[Configuration]:
    """Configurations by names that they keep wherever they stand in a file, and whatever else it holds: as the folder that
    has the same settings, or with their digest where several, here or there, have the same encoders."""
    there = {}
    for path in sorted(output.glob(f"*/{CONFIG}")) if output else ():
        with contextlib.suppress(OSError, ValueError):  # some other program's, or cut short
            there[path.parent.name] = dict(json.loads(path.read_text("utf-8")))
    titles = Counter(each.name for each in configurations)
    named = []
    for each in configurations:
        config = each.describe()
        new = f"{each.name}-{each.digest}" if titles[each.name] > 1 or each.name in there else each.name
        same = (name for name, stored in there.items() if name.startswith(each.name) and is_same(stored, config))
        named.append(each.called(next(same, new)))
    return named


@dataclass(frozen=True)
class Work:
    """What a training job does.

    Attributes:
        configurations: that are still to be trained; none where all were.
        finished: what the others came to, by the folders that hold it.
        search: trains the runs of the configurations.
        output: the job's output folder.
    """

    configurations: list[Configuration]
    finished: list[Result]
    search: Search
    output: Path

    @classmethod
    def of(cls, options: TrainClip, configurations: list[Configuration]) -> Work:
        """An interrupted job goes on with its own search; another one leaves out what its output folder holds already."""
        search = _search(options, configurations)
        output = Path(options.output_dir).expanduser().resolve() if options.output_dir else default_output(search)
        if not options.multi_config or options.resume == "never" or search.has_begun:
            return cls(configurations, [], search, output)
        results = {each.name: Result.read(output, each.name, each.describe()) for each in configurations}
        # one that ended while its job went on has figures, but no run that can be registered: that is made at a job's end
        finished = [result for result in results.values() if result is not None and "run_id" in result.figures]
        left = [each for each in configurations if each.name not in {result.name for result in finished}]
        return cls(left, finished, _search(options, left) if left and finished else search, output)

    def outputs(self) -> dict[str, RunOutput]:
        """The output folder of each run, in which its configuration is written first."""
        for each in self.configurations:
            each.start(self.output)
        return {name: each for one in self.configurations for name, each in one.outputs(self.output, self.search).items()}


def _search(options: TrainClip, configurations: Sequence[Configuration]) -> Search:
    runs = {name: spec for each in configurations for name, spec in each.specs.items()}
    return options.named_search(next(iter(runs.values())), Budget(len(runs)), runs)


def default_output(search: Search) -> Path:
    """Beside the run's checkpoints, or in the current folder where the storage is remote."""
    folder = search.template.folder
    return (Path(folder.path) if folder.is_local else Path(search.name).resolve()) / "output"


def read_configurations(path: Path, options: TrainClip, aliases: Aliases) -> list[TrainClip | UserError]:
    """The options of each entry of a configuration file, or what is wrong with it.

    Args:
        options: what holds where an entry says nothing.
        aliases: the guide's names; keys are written with underscores.

    Raises:
        UserError: the file is no JSON list of objects.
    """
    try:
        entries = json.loads(read_text(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path} must hold a list of configurations: [{{...}}, {{...}}]")
    base = dataclasses.replace(options, multi_config=False, config_file=None)
    found: list[TrainClip | UserError] = []
    for entry in entries:
        try:
            found.append(_changed(base, entry, aliases))
        except UserError as error:
            found.append(error)
    return found


def _changed(options: TrainClip, entry: Mapping[str, Any], aliases: Aliases) -> TrainClip:
    known_as = {key: aliases[key.replace("_", "-")] for key in entry if key.replace("_", "-") in aliases}
    implied = {option: entry[key] for key, alias in known_as.items() for option in alias.implies if type(entry[key]) is int}
    for key, value in (implied | dict(entry)).items():
        alias = aliases.get(key.replace("_", "-"))
        name = alias.option if alias else key
        if alias and alias.says:
            log.info("%s: %s", key, alias.says)
        if not name:
            continue
        if name.split(".")[0] in OF_THE_JOB:
            raise UserError(f"key {key!r} holds for all configurations alike: give it on the command line")
        try:
            now = get_setting(options, name)
        except UserError as error:
            known = sorted(each.replace("-", "_") for each in aliases)
            hint = did_you_mean(key, known)
            raise UserError(
                f"unknown key {key!r}{hint}; the keys are {', '.join(known)}, and every option's name"
            ) from error
        if dataclasses.is_dataclass(now):
            if not isinstance(value, dict):
                settings = ", ".join(each.name for each in dataclasses.fields(now))
                raise UserError(f"key {key!r} has settings of its own: {{{settings}}}")
            options = _changed(options, {f"{name}.{part}": each for part, each in value.items()}, aliases)
            continue
        here = alias.values.get(json.dumps(value), value) if alias else value
        try:
            options = with_setting(options, name, _typed(type(options), name, here))
        except (UserError, ArgumentError) as error:
            reason = str(error).removeprefix('Parser key "value":').strip()
            raise UserError(f"key {key!r}: {json.dumps(value, ensure_ascii=False)} cannot be used: {reason}") from error
    return options


def _typed(owner: type, name: str, value: Any) -> Any:
    """A value from JSON, as the type of the option at a dotted name.

    Raises:
        ArgumentError: it is of another type.
    """
    for part in name.split("."):
        hint = typing.get_type_hints(owner)[part]
        owner = typing.cast(type, hint)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    if hint is bool and not isinstance(value, bool):
        raise ArgumentError(None, "it must be true or false, without quotes")
    if value is None and type(None) not in typing.get_args(hint):
        raise ArgumentError(None, "it must not be null")
    return parser.parse_object({"value": value}).value
