"""MLflow in memory, as its client sees it: it may be away, lose an answer, take a creation twice, and be set back."""

from __future__ import annotations

import copy
import itertools
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from types import SimpleNamespace
from typing import Any, TypeVar

from machines import World
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST

from raymed import clock

BACK = 600.0  # seconds by which the database is set back, at most
HAS_TAG = re.compile(r"tags\.`([^`]+)` = '([^']*)'")

Request = TypeVar("Request", bound=Callable[..., Any])


@dataclass
class RunRow:
    """A run in the database. `metrics` holds (name, value, timestamp, step), each once, as MLflow's key has it."""

    id: str
    name: str
    started: int
    status: str = "RUNNING"
    stage: str = "active"
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[tuple[str, float, int, int], None] = field(default_factory=dict)


class Database:
    """What MLflow's server keeps.

    Attributes:
        is_away: whether it does not answer.
        lose_answers, twice: of how many requests to come the answer is lost, and the creation repeated.
        overruled: versions that a person made champion while another request for it was on its way: MLflow asks nobody
            which version is to be replaced.
        fates: what becomes of the next request of a name: it is "refused", done "twice", or "lost": done, and not answered.
        is_copied: whether there are copies to be set back to.
    """

    def __init__(self, world: World, seed: int) -> None:
        self._world, self._draw, self._numbers = world, random.Random(seed), itertools.count()
        self.runs: dict[str, RunRow] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.is_away, self.lose_answers, self.twice = False, 0, 0
        self.overruled: set[str] = set()
        self.fates: dict[str, str] = {}
        self.is_copied = False
        self._copies: list[tuple[float, Any]] = []  # until when the state was so

    def note(self) -> None:
        """Before each request, keep a copy of what there was until now, for `set_back`."""
        if self.is_copied:
            kept = [each for each in self._copies if each[0] > self._world.now - BACK]
            self._copies = [*kept, (self._world.now, self._copied())]

    def set_back(self, seconds: float) -> None:
        """What there was so long ago takes the place of what there is."""
        old = [state for until, state in self._copies if until > self._world.now - seconds]
        if old:
            (self.runs, self.models), self._copies = old[0], []

    def _copied(self) -> Any:
        runs = {
            row.id: replace(row, tags={**row.tags}, params={**row.params}, metrics={**row.metrics})
            for row in self.runs.values()
        }
        return runs, copy.deepcopy(self.models)

    def add_version(self, name: str, tags: Mapping[str, str]) -> str:
        """A new version of a registered model; only a database that was set back gives its number again."""
        model = self.models.setdefault(name, {"versions": {}, "aliases": {}})
        number = str(model.setdefault("last", 0) + 1)
        model["last"], model["versions"][number] = int(number), dict(tags)
        model.setdefault("made", {})[number] = int(self._world.now * 1000)
        return number

    def new_id(self) -> str:
        return f"{self._draw.getrandbits(64):016x}{next(self._numbers):04x}"


def _unsure(request: Request) -> Request:
    """A request that may have a fate of its own, by its public name."""

    @wraps(request)
    def ask(self: Client, *args: Any, **options: Any) -> Any:
        fate = self._base.fates.pop(request.__name__.removeprefix("_"), "")
        if fate == "refused":
            raise MlflowException("the server does not answer")
        answer = request(self, *args, **options)
        if fate == "twice":
            answer = request(self, *args, **options)
        if fate == "lost":
            raise MlflowException("the connection was closed before there was an answer")
        return answer

    return ask  # type: ignore[return-value]


class Client:
    """As much of `mlflow.MlflowClient` as raymed uses in a search."""

    def __init__(self, world: World, database: Database) -> None:
        self._world, self._base = world, database

    def _ask(self) -> None:
        self._world.touch("ask", "mlflow")
        if self._base.is_away:
            raise MlflowException("the server does not answer")
        self._base.note()

    def _answer(self) -> None:
        if self._base.lose_answers:
            self._base.lose_answers -= 1
            raise MlflowException("the connection was closed before there was an answer")
        self._world.touch("answer", "mlflow")

    def _run(self, run_id: str) -> RunRow:
        row = self._base.runs.get(run_id)
        if row is None:
            raise MlflowException(f"no run {run_id}", RESOURCE_DOES_NOT_EXIST)
        return row

    def _active(self, run_id: str) -> RunRow:
        row = self._run(run_id)
        if row.stage != "active":
            raise MlflowException(f"the run {run_id} must be in the 'active' state", INVALID_PARAMETER_VALUE)
        return row

    def create_run(self, experiment_id: str, tags: dict[str, str], run_name: str) -> Any:
        """Dated before it is asked for, by the client's clock, see `mlflow.MlflowClient.create_run`."""
        return self._create_run(run_name, tags, int(clock.now() * 1000))

    @_unsure
    def _create_run(self, run_name: str, tags: dict[str, str], started: int) -> Any:
        self._ask()
        for _ in range(2 if self._base.twice else 1):
            row = RunRow(self._base.new_id(), run_name, started, tags=dict(tags))
            self._base.runs[row.id] = row
        self._base.twice = max(0, self._base.twice - 1)
        self._answer()
        return _seen(row)

    @_unsure
    def search_runs(
        self,
        experiment_ids: list[str],
        filter_string: str = "",
        run_view_type: int = ViewType.ACTIVE_ONLY,
        max_results: int = 0,
    ) -> list[Any]:
        self._ask()
        wanted = HAS_TAG.findall(filter_string)
        found = [
            row
            for row in self._base.runs.values()
            if (row.stage == "active" or run_view_type == ViewType.ALL)
            and all(row.tags.get(name) == value for name, value in wanted)
        ]
        self._answer()
        return [_seen(row) for row in found]

    @_unsure
    def get_run(self, run_id: str) -> Any:
        self._ask()
        row = self._run(run_id)
        self._answer()
        return _seen(row)

    @_unsure
    def delete_run(self, run_id: str) -> None:
        self._ask()
        self._run(run_id).stage = "deleted"
        self._answer()

    @_unsure
    def log_batch(
        self, run_id: str, metrics: Sequence[Metric] = (), params: Sequence[Param] = (), tags: Sequence[RunTag] = ()
    ) -> None:
        """Of a request whose answer is lost a part may be there: each of the three is one transaction, see
        `mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore.log_batch`."""
        self._ask()
        row = self._active(run_id)
        parts: list[Sequence[Any]] = [each for each in (params, metrics, tags) if each]
        if self._base.lose_answers and parts:
            parts = parts[: self._base._draw.randint(0, len(parts))]
        for item in itertools.chain(*parts):
            if isinstance(item, Metric):
                row.metrics[item.key, item.value, item.timestamp, item.step] = None
            elif isinstance(item, Param):
                row.params.setdefault(item.key, item.value)
            else:
                row.tags[item.key] = item.value
        self._answer()

    @_unsure
    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        self._ask()
        row = self._run(run_id)
        self._answer()
        return [Metric(name, value, when, step) for name, value, when, step in row.metrics if name == key]

    @_unsure
    def log_inputs(self, run_id: str, datasets: Any) -> None:
        self._ask()
        self._active(run_id)
        self._answer()

    @_unsure
    def update_run(self, run_id: str, status: str) -> None:
        self._ask()
        self._active(run_id).status = status
        self._answer()

    @_unsure
    def set_terminated(self, run_id: str, status: str) -> None:
        self.update_run(run_id, status)

    # the registry

    @_unsure
    def get_model_version_by_alias(self, name: str, alias: str) -> Any:
        self._ask()
        model = self._base.models.get(name, {"aliases": {}})
        if alias not in model["aliases"]:
            raise MlflowException(f"no alias {alias}", RESOURCE_DOES_NOT_EXIST)
        self._answer()
        return _seen_version(model, model["aliases"][alias])

    @_unsure
    def get_model_version(self, name: str, version: str) -> Any:
        self._ask()
        model = self._base.models.get(name, {"versions": {}})
        if version not in model["versions"]:
            raise MlflowException(f"no version {version}", RESOURCE_DOES_NOT_EXIST)
        self._answer()
        return _seen_version(model, version)

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self._set_registered_model_alias(name, alias, version, self._aliases(name).get(alias))

    def _aliases(self, name: str) -> dict[str, str]:
        if name not in self._base.models:  # the database was set back to before there was one
            raise MlflowException(f"no model {name}", RESOURCE_DOES_NOT_EXIST)
        return self._base.models[name]["aliases"]

    @_unsure
    def _set_registered_model_alias(self, name: str, alias: str, version: str, before: str | None) -> None:
        """
        Args:
            before: the version that the alias named when the request, which may be done twice, was sent.
        """
        self._ask()
        now = self._aliases(name).get(alias)
        if now != before:
            self._base.overruled.add(now)
        self._base.models[name]["aliases"][alias] = version
        self._answer()

    @_unsure
    def search_model_versions(self, filter_string: str) -> list[Any]:
        """The newest first."""
        self._ask()
        versions = self._base.models.get(filter_string.split("'")[1], {"versions": {}})["versions"]
        self._answer()
        return [SimpleNamespace(version=number, tags=tags) for number, tags in reversed(versions.items())]

    @_unsure
    def get_registered_model(self, name: str) -> Any:
        self._ask()
        aliases = dict(self._base.models[name]["aliases"])
        self._answer()
        return SimpleNamespace(aliases=aliases)

    @_unsure
    def create_registered_model(self, name: str) -> None:
        self._ask()
        if name in self._base.models:
            raise MlflowException("it is there", RESOURCE_ALREADY_EXISTS)
        self._base.models[name] = {"versions": {}, "aliases": {}}
        self._answer()

    @_unsure
    def create_model_version(self, name: str, source: str, run_id: str, tags: dict[str, str], **_: Any) -> Any:
        self._ask()
        number = self._base.add_version(name, tags)
        self._answer()
        return SimpleNamespace(version=number)

    @_unsure
    def delete_model_version(self, name: str, version: str) -> None:
        """And the aliases that name it."""
        self._ask()
        model = self._base.models[name]
        if model["versions"].pop(version, None) is None:
            raise MlflowException(f"no version {version}", RESOURCE_DOES_NOT_EXIST)
        model["aliases"] = {alias: named for alias, named in model["aliases"].items() if named != version}
        self._answer()


def _seen_version(model: Mapping[str, Any], number: str) -> Any:
    return SimpleNamespace(version=number, creation_timestamp=model["made"][number])


def _seen(row: RunRow) -> Any:
    last: dict[str, tuple[int, int, float]] = {}
    for name, value, when, step in row.metrics:
        last[name] = max(last.get(name, (-1, 0, 0.0)), (step, when, value))
    return SimpleNamespace(
        info=SimpleNamespace(
            run_id=row.id, run_name=row.name, status=row.status, start_time=row.started, lifecycle_stage=row.stage
        ),
        data=SimpleNamespace(
            tags=dict(row.tags), params=dict(row.params), metrics={name: value for name, (_, _, value) in last.items()}
        ),
    )
