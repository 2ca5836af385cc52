"""The cluster files, as far as they can be tried without machines: Ray's own checks, and AWS played by moto."""

from __future__ import annotations

import re
import subprocess
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.event_summarizer import EventSummarizer
from ray.autoscaler._private.node_launcher import BaseNodeLauncher
from ray.autoscaler._private.node_provider_availability_tracker import NodeProviderAvailabilityTracker
from ray.autoscaler._private.prom_metrics import AutoscalerPrometheusMetrics
from ray.autoscaler._private.resource_demand_scheduler import ResourceDemandScheduler
from ray.autoscaler._private.util import ConcurrentCounter, prepare_config, validate_config, with_envs
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    TAG_RAY_USER_NODE_TYPE,
)

from raymed.cluster import autoscaler
from raymed.cluster.connection import capacity, gpus_of_a_machine, smallest_store

REPOSITORY = Path(__file__).parent.parent.parent
FILES = ("cluster.yaml", "cluster.local.yaml")


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / name).read_text())


def programs(folder: Path, lines: Mapping[str, str]) -> dict[str, str]:
    """An environment in which each of these programs is the shell lines given."""
    for program, content in lines.items():
        (folder / program).write_text(f"#!/bin/bash\n{content}\n")
        (folder / program).chmod(0o755)
    return {"HOME": str(folder), "PATH": f"{folder}:/usr/bin:/bin"}


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file(name: str) -> None:
    validate_config(prepare_config(load(name)))


@pytest.mark.parametrize("name", FILES)
def test_every_node_gets_the_token_and_asks_for_it(name: str) -> None:
    config = load(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    assert any("export RAY_AUTH_MODE=token" in line for line in config["setup_commands"])
    starts = [line for key in ("head", "worker") for line in config[f"{key}_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2 and all(line.startswith("source ~/raymed.env && ") for line in starts)


@pytest.mark.parametrize("name", FILES)
def test_nothing_listens_beyond_loopback_but_ray_itself(name: str) -> None:
    lines = load(name)["head_start_ray_commands"]
    assert sum("--dashboard-host=127.0.0.1" in line for line in lines) == 1
    assert not any("0.0.0.0" in line for line in lines)


@pytest.mark.parametrize("name", FILES)
def test_shell_commands_parse(name: str) -> None:
    config = load(name)
    for line in [line for key, lines in config.items() if key.endswith("_commands") for line in lines]:
        done = subprocess.run(["bash", "-n", "-c", f"( {line} )"], capture_output=True, text=True)
        assert done.returncode == 0, line + done.stderr


@pytest.mark.parametrize("name", FILES)
def test_jobs_know_storage_and_tracking_address(name: str) -> None:
    environment = "\n".join(load(name)["setup_commands"])
    assert "RAYMED_STORAGE=" in environment and "MLFLOW_TRACKING_URI=http://127.0.0.1:5001" in environment


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("exit_code", "chosen"), [(0, " LOCK=requirements.gpu.lock"), (9, ""), (127, "")])
def test_a_machine_with_a_gpu_installs_from_the_lock_with_cuda(
    name: str, exit_code: int, chosen: str, tmp_path: Path
) -> None:
    """`make` and `nvidia-smi` are programs here; the latter fails where there is no card."""
    environment = programs(tmp_path, {"make": "echo make $*", "nvidia-smi": f"echo GPU 0; exit {exit_code}"})
    (command,) = (line for line in load(name)["setup_commands"] if "make -C" in line)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, f"make -C {tmp_path}/raymed setup{chosen}\n")


def locked(name: str) -> dict[str, str]:
    """Versions by the names of packages."""
    lines = [line for line in (REPOSITORY / name).read_text().splitlines() if not line.startswith("#")]
    return {str(canonicalize_name(package)): version for package, version in (line.split("==") for line in lines)}


def test_the_locks_agree_on_what_both_hold_and_each_has_its_faiss() -> None:
    """A head without a GPU and workers with one send each other objects of the same libraries."""
    usual, gpu = (locked(lock) for lock in ("requirements.lock", "requirements.gpu.lock"))
    both = usual.keys() & gpu.keys()
    assert {name: usual[name] for name in both} == {name: gpu[name] for name in both}
    assert len(usual.keys() - both) < 60, "development tools, and faiss-cpu"
    assert {"ray", "torch", "deepspeed", "transformers", "mlflow", "nvidia-nccl-cu13"} <= gpu.keys()
    faiss = [{name for name in lock if name.startswith("faiss")} for lock in (usual, gpu)]
    assert faiss == [{"faiss-cpu"}, {"faiss-gpu"}]
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["gpu"], *extras["weights"]]:
        requirement = Requirement(text)
        assert gpu[canonicalize_name(requirement.name)] in requirement.specifier, text


def test_the_stated_capacity_is_what_the_cluster_can_grow_to(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load("cluster.yaml")
    stated = re.search(r"export .*RAYMED_CAPACITY=(\S+)", "\n".join(config["setup_commands"]))
    assert stated is not None
    monkeypatch.setenv("RAYMED_CAPACITY", stated[1])
    monkeypatch.setattr(
        "raymed.cluster.connection.machines", lambda: [{"CPU": 8.0, "object_store_memory": 1e12}]
    )  # the head
    types = dict(config["available_node_types"])
    head = types.pop(config["head_node_type"])["resources"]
    assert len(types) > 1
    for worker in types.values():
        machines = {name: worker["resources"][name] * config["max_workers"] for name in ("CPU", "GPU")}
        assert {name: machines[name] + head.get(name, 0) for name in machines} == capacity({})
        assert gpus_of_a_machine() == worker["resources"]["GPU"]
    (start,) = (line for line in config["worker_start_ray_commands"] if "ray start" in line)
    assert f"--object-store-memory=$(({smallest_store() / 2**30:.0f} << 30))" in start


@pytest.mark.parametrize("name", FILES)
def test_ray_starts_with_the_older_autoscaler_a_thread_for_each_cpu_and_its_files_on_a_disk(
    name: str, tmp_path: Path
) -> None:
    """`ray up` exports the contrary before each command. `ray` is a program here that shows what it was started with."""
    config, disk = load(name), "/var/tmp" if name == "cluster.yaml" else "/tmp"  # AWS keeps /tmp in memory
    (tmp_path / "raymed" / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "raymed" / ".venv" / "bin" / "activate").write_text(f"PATH={tmp_path}:$PATH\n")
    (tmp_path / "ray").write_text(
        "#!/bin/bash\necho $1 v2=$RAY_enable_autoscaler_v2 threads=${OMP_NUM_THREADS-unset} ${TMPDIR-/tmp}\n"
    )
    (tmp_path / "ray").chmod(0o755)
    (writes,) = (line for line in config["setup_commands"] if "cat > ~/raymed.env" in line)
    starts = [line for key in ("head", "worker") for line in config[f"{key}_start_ray_commands"] if "ray start" in line]
    for command in (writes, *with_envs(starts, {"RAY_enable_autoscaler_v2": "1"})):
        line = " ".join(_with_interactive(command)).replace(" --login -c -i ", " -c ")
        done = subprocess.run(
            line, shell=True, capture_output=True, text=True, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        )
        assert done.returncode == 0, done.stderr
        assert command == writes or done.stdout == f"start v2=0 threads=unset {disk}\n"


def test_the_autoscaler_takes_the_other_type_while_the_first_cannot_be_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's scheduler and launcher; only the cloud that has no machine is played."""
    config = load("cluster.yaml")
    types, head = config["available_node_types"], config["head_node_type"]
    named = re.search(r"RAY_AUTOSCALER_UTILIZATION_SCORER=(\S+)", "\n".join(config["setup_commands"]))
    assert named is not None
    asked: list[str] = []
    set_ups = autoscaler.SetUps()  # none of what other tests have seen fail
    monkeypatch.setattr(autoscaler, "set_ups", lambda: set_ups)

    class Empty(NodeProvider):
        def create_node_with_resources_and_labels(self, node_config: Any, tags: dict[str, str], *_: Any) -> None:
            asked.append(tags[TAG_RAY_USER_NODE_TYPE])
            raise NodeLaunchException("InsufficientInstanceCapacity", "there is no spot capacity", None)

    def wanted() -> dict[str, int]:
        scheduler = ResourceDemandScheduler(provider, types, config["max_workers"], head, config["upscaling_speed"])
        return scheduler.get_nodes_to_launch([], {head: 1}, [{"CPU": 8, "GPU": 1}] * 3, {}, [], {}, [], tracker.summary())[0]

    provider, tracker = Empty(config["provider"], "raymed"), NodeProviderAvailabilityTracker()
    metrics = AutoscalerPrometheusMetrics("made-up")
    launcher = BaseNodeLauncher(provider, ConcurrentCounter(), EventSummarizer(), tracker, None, metrics, types)
    (first,) = wanted()
    launcher._launch_node(config, 1, first)
    assert asked == [first] and list(wanted()) == [first], "Ray now minds by itself: `raymed.autoscaler` can go"
    monkeypatch.setenv("RAY_AUTOSCALER_UTILIZATION_SCORER", named[1])
    (second,) = wanted()
    assert {first, second} == types.keys() - {head}
    launcher._launch_node(config, 1, second)
    assert list(wanted()) == [first], "with none to be had, the usual order holds"


@pytest.mark.slow
def test_a_worker_whose_head_is_gone_ends_itself_and_no_other_does(tmp_path: Path) -> None:
    """Only the head ends machines: without one they would be paid for ever. A minute is a hundredth of a second here."""
    workers = [each for name, each in load("cluster.yaml")["available_node_types"].items() if name != "head"]
    (user_data,) = {each["node_config"]["UserData"] for each in workers}
    assert {each["node_config"]["InstanceInitiatedShutdownBehavior"] for each in workers} == {"terminate"}
    calls, ended = tmp_path / "calls", tmp_path / "ended"
    # Ray is there in the first 70 minutes but for the fifty of its set-up, and gone from then on
    present = f"echo >> {calls}; minute=$(wc -l < {calls}); ((minute > 50 && minute <= 70))"
    environment = programs(tmp_path, {"sleep": "/usr/bin/sleep 0.01", "pgrep": present, "shutdown": f"echo $* > {ended}"})
    subprocess.run(["bash", "-c", user_data], env=environment, check=True)
    deadline = time.monotonic() + 60
    while not ended.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended.read_text() == "-h now\n"
    assert len(calls.read_text().splitlines()) == 90, "twenty minutes after it was last seen"


def test_every_machine_has_rsync_before_ray_first_comes_there(tmp_path: Path) -> None:
    """Ray brings files before it runs any command of the file's; by ssh, whose server waits for cloud-init's boothooks."""
    for each in load("cluster.yaml")["available_node_types"].values():
        user_data = each["node_config"]["UserData"]
        assert user_data.startswith("#cloud-boothook\n#!/bin/bash\n")
        for image, called in (("with", ""), ("without", "install -y rsync\n")):
            folder = tmp_path / f"{image}-{each['node_config']['InstanceType']}"
            folder.mkdir()
            lines = {"dnf": f"echo $* >> {folder}/called", "setsid": "exit 0"} | ({"rsync": ""} if image == "with" else {})
            environment = programs(folder, lines) | {"PATH": str(folder)}
            subprocess.run(["/bin/bash", "-c", user_data], env=environment, check=True, stdout=subprocess.DEVNULL)
            there = folder / "called"
            assert (there.read_text() if there.exists() else "") == called


@pytest.mark.parametrize("name", FILES)
def test_a_head_whose_tracking_server_does_not_start_says_why_at_once(name: str, tmp_path: Path) -> None:
    """A wrong bucket was ten blind minutes."""
    (waits,) = (line for line in load(name)["head_start_ray_commands"] if "/health" in line)
    (tmp_path / "tracking.log").write_text("error: the bucket s3://YOUR-BUCKET does not exist\n")
    environment = programs(tmp_path, {"curl": "exit 7", "pgrep": "exit 1"})
    done = subprocess.run(["bash", "-c", f"( {waits} )"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "does not exist" in done.stdout
    environment = programs(tmp_path, {"curl": "exit 0", "pgrep": "exit 0"})
    done = subprocess.run(["bash", "-c", f"( {waits} )"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_tracking_server_that_the_system_ends_is_started_again_and_one_that_refuses_is_not(
    name: str, tmp_path: Path
) -> None:
    """Killed for want of memory, it left judging without MLflow; started for ever, a wrong bucket was ten blind minutes."""
    (starts,) = (line for line in load(name)["head_start_ray_commands"] if "serve_tracking.py --port" in line)
    calls = tmp_path / "calls"
    (tmp_path / "raymed.env").touch()
    ends = f"echo $* >> {calls}; (($(wc -l < {calls}) < 3)) && kill -9 $$; exit 2"
    environment = programs(tmp_path, {"python": ends, "sleep": "exit 0"})
    subprocess.run(["bash", "-c", f"{starts} wait"], env=environment, check=False, timeout=60)
    assert calls.read_text().splitlines() == [f"{tmp_path}/raymed/jobs/serve_tracking.py --port 5001"] * 3
