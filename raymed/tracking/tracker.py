"""MLflow, written so that running the same command twice leaves what running it once leaves.

A run is named by a key of ours (the tag ``raymed.key``) and looked up before it is created; parameters are written once;
an epoch that is already there is not written again. Only the driver writes, through a client with an explicit address, so
neither the current folder nor MLflow's process-wide settings matter.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

from raymed import clock
from raymed.compat.mlflow import DATA_CONTEXT, NOTE, PARENT
from raymed.errors import UserError
from raymed.tracking.address import reachable
from raymed.tracking.names import flatten, metric_name, quoted
from raymed.tracking.outbox import LAST_WAIT
from raymed.tracking.refusals import is_denied
from raymed.tracking.run_record import RunRecord
from raymed.tracking.view import TAGS, where_to_look

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported: nothing is sent anywhere
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

from raymed.tracking.experiments import all_experiments
from raymed.tracking.metric_history import MetricHistory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("raymed")

KEY, REASON = "raymed.key", "raymed.reason"
GENERATION = "raymed.generation"  # the tag that tells a search's runs from those of another one under the same name
DRAWN = "raymed.drawn"  # and a trial's run from that of one which the record has lost, and drawn otherwise since
USED = "raymed.used"  # the tag that says whom a run is trained and validated on
PARAM_LENGTH, TAG_LENGTH = 6000, 8000  # MLflow's limits for one value

PAUSE = 2.0  # seconds between two looks at a server that is away

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class Tracker:
    """One MLflow experiment at one tracking address, or only the address. Build it with `Tracker.open`."""

    uri: str
    experiment: str
    experiment_id: str
    client: MlflowClient

    @classmethod
    def open(cls, tracking_uri: str, experiment: str = "") -> Tracker:
        """The experiment, created where it is missing. Artefacts of a database file lie in ``artifacts/`` beside it.

        Args:
            experiment: where runs are made and found by key; none for who only looks up runs by id, and models.

        Raises:
            UserError: the server does not answer, the database cannot be written, or the experiment was deleted.
        """
        uri, artifacts = reachable(tracking_uri)
        try:
            with _alone(uri):
                client = MlflowClient(uri, registry_uri=uri)
                if not experiment:
                    client.search_experiments(max_results=1)
                    return cls(uri, "", "", client)
                found = client.get_experiment_by_name(experiment)
                if found is None:
                    client.create_experiment(experiment, artifact_location=artifacts)
                    found = client.get_experiment_by_name(experiment)
                if found is not None and found.lifecycle_stage == "active":
                    for name, value in TAGS.items() - found.tags.items():
                        client.set_experiment_tag(found.experiment_id, name, value)
        except Exception as error:  # MLflow's stores let errors of SQLAlchemy, requests and the file system through
            if is_denied(error):
                raise UserError(
                    f"the tracking address {tracking_uri} refuses the credentials: {error}. Renew them "
                    "(MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD), then give the same "
                    "command"
                ) from error
            raise UserError(
                f"the tracking address {tracking_uri} cannot be used: {error}. Give another --tracking-uri: "
                "sqlite:////absolute/path/mlflow.db or http://SERVER:5000."
            ) from error
        if found is None or found.lifecycle_stage == "deleted":
            raise UserError(
                f"the experiment {experiment!r} at {uri} was deleted. Restore it in the MLflow UI, or remove it for "
                "good with `mlflow gc`, and run the command again."
            )
        return cls(uri, experiment, found.experiment_id, client)

    @classmethod
    def open_patiently(cls, tracking_uri: str, experiment: str = "", seconds: float = LAST_WAIT) -> Tracker:
        """As `open`, of an address that was good before: a server that is away is waited for.

        Args:
            seconds: at most.

        Raises:
            UserError: it is still away; or as for `open`.
        """
        until, away = clock.seconds() + seconds, False
        while True:
            try:
                reachable(tracking_uri)
                break
            except UserError as error:
                if clock.seconds() > until:
                    raise
                if not away:
                    log.warning("MLflow is waited for, %.0f minutes at most: %s", seconds / 60, error)
                away = True
            clock.sleep(PAUSE)
        return cls.open(tracking_uri, experiment)

    @cached_property
    def history(self) -> MetricHistory:
        """What validations and steps of runs computed."""
        return MetricHistory(self.client)

    def run(
        self,
        key: str,
        name: str,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        begun_with: Mapping[str, Any] | None = None,
    ) -> str:
        """The id of the run with this key: the one that is there, or a new one.

        Args:
            key: names the run for ever, e.g. ``lung-3fa9c1/trial-7``.
            name: what the MLflow UI shows.
            parent: the id of the parent run.
            tags: set on every call. A run whose `GENERATION` or `DRAWN` is another one is of another search, or of a trial
                that was lost, and deleted (restorably).
            params: nested settings, flattened to dotted names; written once.
            begun_with: others, which a run that goes on may have with other values: those of its beginning stay.

        Raises:
            UserError: the run has a parameter with another value.
        """
        tags = dict(tags or {})
        if self._only(key, tags) is None:
            first = {KEY: quoted(key)} | ({PARENT: parent} if parent else {})
            first |= {tag: tags[tag] for tag in (GENERATION, DRAWN) if tag in tags}
            self.client.create_run(self.experiment_id, tags=first, run_name=name)
        found = str(self._only(key, tags))  # MLflow's client repeats a creation whose answer was lost, and makes two
        self.tags(found, tags | ({PARENT: parent} if parent else {}))  # which may have been deleted, and made anew
        self._params(found, dict(flatten(params or {})))
        there = self.describe(found).params if begun_with else {}
        self._params(found, {name: text for name, text in flatten(begun_with or {}) if name not in there})
        return found

    def find(self, key: str) -> str | None:
        """The id of the run with this key, or None."""
        runs = self._with_key(key)
        return runs[0].info.run_id if runs else None

    def _with_key(self, key: str) -> list[Run]:
        """The runs with this key, the oldest first, but those without a metric last: a creation that took long, or was
        repeated, may be dated before that of the run that is written to."""
        found = self.client.search_runs([self.experiment_id], f"tags.`{KEY}` = '{quoted(key)}'", ViewType.ACTIVE_ONLY)
        return sorted(found, key=lambda run: (not run.data.metrics, run.info.start_time, run.info.run_id))

    def _only(self, key: str, tags: Mapping[str, str]) -> str | None:
        """The id of the one run with this key that is of this generation, and drawn so; others are deleted."""
        runs = self._with_key(key)
        wanted = {tag: tags[tag] for tag in (GENERATION, DRAWN) if tag in tags}
        own = [run for run in runs if wanted.items() <= (wanted | run.data.tags).items()]
        for run in [run for run in runs if run not in own] + own[1:]:
            self.client.delete_run(run.info.run_id)
        return own[0].info.run_id if own else None

    def children(self, parent: str) -> dict[str, RunRecord]:
        """The runs under a run, by their keys."""
        runs = self.client.search_runs([self.experiment_id], f"tags.`{PARENT}` = '{parent}'", max_results=50_000)
        return {unquote(run.data.tags.get(KEY, "")): RunRecord.of(run) for run in runs}

    def tagged(self, tag: str, value: str = "") -> list[RunRecord]:
        """The runs that have a tag, with this value where one is given, in all experiments, also those that were deleted."""
        experiments = all_experiments(self.client, ViewType.ALL)
        which = f"tags.`{tag}` = '{value}'" if value else f"tags.`{tag}` LIKE '%'"
        return [RunRecord.of(run) for run in self.client.search_runs(experiments, which, ViewType.ALL, max_results=50_000)]

    def forget(self, name: str) -> None:
        """Delete the run with this key and those under it (``name/...``); MLflow keeps them restorable."""
        for run in self.client.search_runs([self.experiment_id], max_results=50_000):
            key = unquote(run.data.tags.get(KEY, ""))
            if key == name or key.startswith(f"{name}/"):
                self.client.delete_run(run.info.run_id)

    def describe(self, run_id: str) -> RunRecord:
        """Everything that is known of a run.

        Raises:
            UserError: there is no such run.
        """
        try:
            return RunRecord.of(self.client.get_run(run_id))
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # the server is away, say
                raise
            raise UserError(
                f"there is no run {run_id!r} at {self.uri}. Copy the run id from the MLflow UI "
                f"(`mlflow ui --backend-store-uri {self.uri}`)."
            ) from error

    def metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Write metrics that belong to the whole run, such as test figures; unchanged ones are not written again."""
        there = self.describe(run_id).metrics
        changed = {name: value for name, value in metrics.items() if there.get(metric_name(name)) != value}
        self.history.write(run_id, changed, 0)

    def tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags. A value above MLflow's limit is cut, says so, and is kept whole as an artefact."""
        self.client.log_batch(
            run_id,
            tags=[RunTag(name, self._short(run_id, "tags", name, text, TAG_LENGTH)) for name, text in tags.items()],
        )

    def input(self, run_id: str, name: str, digest: str, source: str, context: str) -> None:
        """Record a data set as an input of the run.

        Args:
            digest: of the content, at most 36 characters (MLflow's limit).
            source: the URI it lies at.
            context: what for, e.g. ``training``.
        """
        kind = source.split("://", 1)[0] if "://" in source else "local"
        dataset = Dataset(name=name, digest=digest[:36], source_type=kind, source=json.dumps({"uri": source}))
        self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag(DATA_CONTEXT, context)])])

    def figure(self, run_id: str, figure: Figure, path: str) -> None:
        """Keep a figure as an artefact, e.g. ``figures/confusion.png``."""
        self.client.log_figure(run_id, figure, path)

    def text(self, run_id: str, text: str, path: str) -> None:
        """Keep a text as an artefact, e.g. ``report.html``."""
        self.client.log_text(run_id, text, path)

    def artifacts(self, run_id: str, folder: Path, path: str) -> None:
        """Copy the files of a local folder to the artefact folder `path`."""
        self.client.log_artifacts(run_id, str(folder), path)

    @property
    def look_at_it(self) -> str:
        """A line for a person: where the experiment's runs are shown."""
        return where_to_look(self.uri, self.experiment_id)

    def describe_as(self, run_id: str, text: str) -> None:
        """What a run's page says at its top, as Markdown."""
        self.tags(run_id, {NOTE: text})

    def reopen(self, run_id: str) -> None:
        """A run that failed or was stopped goes on: its status is RUNNING again."""
        self.client.update_run(run_id, status="RUNNING")

    def finish(self, run_id: str, status: Status, reason: str = "") -> None:
        """End a run, with the reason where it did not finish. A run that ended so already keeps its end time."""
        there = self.describe(run_id)
        if reason != there.tags.get(REASON, ""):  # that of an interrupt before it went on, say
            self.tags(run_id, {REASON: reason})
        if there.status != status:
            self.client.set_terminated(run_id, status)

    def _params(self, run_id: str, params: Mapping[str, str]) -> None:
        if not params:
            return
        there = self.describe(run_id).params
        short = {name: self._short(run_id, "params", name, text, PARAM_LENGTH) for name, text in params.items()}
        changed = [name for name, text in short.items() if there.get(name, text) != text]
        if changed:
            lines = "\n".join(f"  {name}: was {there[name]}, now {short[name]}" for name in changed[:10])
            raise UserError(
                f"the run {run_id} at {self.uri} was started with other settings:\n{lines}\n"
                "Use the same settings, or another --name for a new run."
            )
        new = [Param(name, text) for name, text in short.items() if name not in there]
        for start in range(0, len(new), 100):  # MLflow's limit for one request
            self.client.log_batch(run_id, params=new[start : start + 100])

    def _short(self, run_id: str, kind: str, name: str, text: str, limit: int) -> str:
        if len(text) <= limit:
            return text
        path = f"{kind}/{name}.txt"
        self.text(run_id, text, path)
        note = f" ... [cut; the whole value is the artefact {path}]"
        return text[: limit - len(note)] + note


def recent_runs(tracking_uri: str, count: int) -> list[RunRecord]:
    """The newest runs of all experiments; creates none.

    Raises:
        UserError: the address cannot be reached.
    """
    client = MlflowClient(reachable(tracking_uri)[0])
    experiments = all_experiments(client)
    return [RunRecord.of(run) for run in client.search_runs(experiments, max_results=count)]


def _alone(uri: str) -> AbstractContextManager[Any]:
    """Two processes that open a new database file at once would both create its tables, and one would fail."""
    return FileLock(uri.removeprefix("sqlite:///") + ".lock") if uri.startswith("sqlite:") else nullcontext()
