"""The private parts of Ray, and of Ray Train and Tune, are what they were."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
import ray
import ray.data
from ray._common import constants
from ray._private import ray_constants, utils
from ray._private.node import Node
from ray.autoscaler._private import monitor, updater
from ray.experimental import internal_kv
from ray.train import RunConfig, ScalingConfig
from upgrade import since

from raymed.compat import ray as compat
from raymed.compat import ray_train as train


def test_an_upgrade_of_ray_left_what_keeps_it_to_itself() -> None:
    with since(compat):

        def parts() -> tuple[object, ...]:
            missing = utils.get_dashboard_dependency_error
            return ray_constants.ENABLE_RAY_CLUSTER, missing, Node.start_monitor, Node.start_log_monitor

        before = parts()
        with compat.kept_to_itself():
            assert ray_constants.ENABLE_RAY_CLUSTER is False
            assert isinstance(utils.get_dashboard_dependency_error(), ImportError)
            assert not any(ours is theirs for ours, theirs in zip(parts(), before, strict=True))
        assert parts() == before
        source = inspect.getsource(ray._private.node) + inspect.getsource(ray._private.services)
        assert "ENABLE_RAY_CLUSTER" in source + inspect.getsource(ray._private.worker), "nobody asks it any more"
        assert "get_dashboard_dependency_error" in source, "nobody asks it any more"
        assert "self.start_monitor()" in source and "self.start_log_monitor()" in source, "it starts them otherwise"
        assert compat.HEAD_NODE == constants.HEAD_NODE_RESOURCE_NAME


def test_an_upgrade_of_ray_left_the_autoscalers_score() -> None:
    from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary

    with since(compat):
        summary = NodeAvailabilitySummary({})
        assert compat.usual_score({"CPU": 4}, [{"CPU": 1}], summary) is not None  # type: ignore[dict-item]
        assert compat.usual_score({"CPU": 4}, [{"GPU": 1}], summary) is None  # type: ignore[dict-item]
        assert summary.node_availabilities == {}


def test_an_upgrade_of_ray_left_the_autoscalers_report() -> None:
    with since(compat):
        assert "DEBUG_AUTOSCALING_STATUS" in inspect.getsource(monitor) and "autoscaler_report" in inspect.getsource(monitor)
        assert callable(internal_kv._internal_kv_get)


def test_an_upgrade_of_ray_left_where_the_autoscaler_sets_machines_up() -> None:
    """tests/cluster/test_ray_up.py does it."""
    with since(compat):
        assert {"cmd_runner", "for_recovery", "provider", "node_id"} <= names_of(updater.NodeUpdater.__init__)
        assert "self.do_update()" in inspect.getsource(updater.NodeUpdater.run)
        assert "self.cmd_runner.run(" in inspect.getsource(updater.NodeUpdater.do_update)
        assert callable(internal_kv._internal_kv_put) and callable(internal_kv._internal_kv_initialized)


def names_of(function: Callable[..., Any]) -> set[str]:
    """What it sets of its object."""
    return set(re.findall(r"\bself\.(\w+) =", inspect.getsource(function)))


@pytest.mark.slow
def test_an_upgrade_of_ray_left_a_data_sets_blocks(cluster: None) -> None:
    with since(compat):
        dataset = ray.data.from_arrow(pa.table({"x": [1, 2, 3]})).materialize()
        blocks = [ray.get(ref) for ref in compat.block_references(dataset)[0]]
        assert pa.concat_tables(blocks).to_pydict() == {"x": [1, 2, 3]}


def test_an_upgrade_of_ray_left_the_trainers_callbacks_and_its_controllers_start() -> None:
    with since(train):
        trainer = train.Trainer(lambda: None, scaling_config=ScalingConfig(num_workers=1), run_config=RunConfig(name="x"))
        usual = [type(callback) for callback in super(train.Trainer, trainer)._create_default_callbacks()]
        own = [type(callback) for callback in trainer._create_default_callbacks()]
        assert train.DatasetsCallback in usual and train.PlacementGroupCleanerCallback in usual
        assert set(usual) - set(own) >= {train.DatasetsCallback}
        assert "_initialize_and_run_controller" in inspect.getsource(train.TorchTrainer.__mro__[1].fit)


def test_an_upgrade_of_ray_left_how_workers_join_and_hear_of_preemption() -> None:
    with since(train):
        joining = {"backend", "world_rank", "world_size", "init_method", "timeout_s"}
        assert joining <= inspect.signature(train.join_process_group).parameters.keys()
        assert not inspect.signature(train.set_ranks).parameters
        assert {"on_start", "on_shutdown"} <= vars(train.TorchBackend).keys()
        assert hasattr(train.WorkerCallback, "after_init_train_context")
        assert "preemption_context" in inspect.getsource(train.get_train_context.__globals__["TrainContext"])
        assert "_training_actor_item_queue" in inspect.getsource(train.TuneReportCallback)
        assert train.CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
