"""What is here, what is missing, what that means, and what to do; and a bundle to send when asking for help."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from raymed.data.labels import LabelTable
from raymed.data.leak import guard
from raymed.data.prepared import Prepared
from raymed.doctor.finding import Finding
from raymed.errors import UserError
from raymed.models.settings import ModelSettings
from raymed.storage.folder import Folder

GIB = 1 << 30
LOW_DISK, LOW_SHARED = 10 * GIB, 1 * GIB  # a search's checkpoints; Ray's object store before it falls back to slow disk
FAISS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu12")  # all of them are the module `faiss`


def machine() -> Iterator[Finding]:
    """Python, packages, accelerators, and what computes on them."""
    fits = (3, 11) <= sys.version_info[:2] < (3, 13)
    yield Finding("Python", "ok" if fits else "wrong", platform.python_version() + ("" if fits else ": use 3.11 or 3.12"))
    yield from packages()
    yield from accelerators()
    yield from kernels()


def packages() -> Iterator[Finding]:
    """raymed's own requirements."""
    wrong: list[str] = []
    there: list[str] = []
    for requirement in map(Requirement, requires("raymed") or []):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        (there if requirement.specifier.contains(found, prereleases=True) else wrong).append(f"{requirement.name} {found}")
    if wrong:
        yield Finding("packages", "wrong", f"{', '.join(wrong)}: run `make setup`, or pip install -e '.[cpu]' again")
    yield Finding("packages", "ok", ", ".join(there))


def accelerators() -> Iterator[Finding]:
    """GPUs as PyTorch sees them."""
    import torch

    from raymed.models.precision import has_bf16

    count = torch.cuda.device_count()
    cpus = f"{os.cpu_count()} CPUs"
    if not count and shutil.which("nvidia-smi"):
        meaning = (
            f"torch {torch.__version__} is a build for CPUs: pip install --force-reinstall one for CUDA, of the same version"
            if torch.version.cuda is None
            else f"torch {torch.__version__} finds no driver for CUDA {torch.version.cuda}: compare nvidia-smi"
        )
        yield Finding("GPU", "wrong", f"there is one, and it cannot be used: {meaning}")
    elif not count:
        yield Finding(
            "GPU", "missing", f"none: training and prediction run on {os.cpu_count()} CPUs; small presets are meant for that"
        )
    for place in range(count):
        each = torch.cuda.get_device_properties(place)
        kind = "bf16" if has_bf16(torch.device("cuda", place)) else "no bf16: computes in fp32"
        memory = f"{each.total_memory / GIB:.0f} GiB"
        yield Finding("GPU", "ok", f"{each.name}, {memory}, {kind}, CUDA {torch.version.cuda}, {cpus}")


def kernels() -> Iterator[Finding]:
    """What computes where there is a choice, and what is missing for more."""
    import torch

    from raymed.models.packed_attention import flash_attn_version

    gpu = torch.cuda.device_count() > 0
    yield Finding("optimizer", "ok", "torch's AdamW" + (", fused; nothing needs to be compiled" if gpu else ""))
    attention = "torch's SDPA"
    if flash := flash_attn_version():
        attention = f"flash-attn {flash} on GPUs in bf16, else {attention}"
    elif gpu:
        attention += ", and in bf16 its kernel for varying lengths over packed samples; nothing needs to be compiled"
    yield Finding("attention", "ok", attention)
    faiss = {name: _version(name) for name in FAISS if _version(name)}
    installed = ", ".join(f"{name} {number}" for name, number in faiss.items())
    if len(faiss) > 1:
        meaning = f"{installed} overwrite each other: pip uninstall -y {' '.join(faiss)}, then install one of them again"
        yield Finding("faiss", "wrong", meaning)
    elif not faiss:
        meaning = f"image retrieval is not available: pip install 'raymed[{'gpu' if gpu else 'cpu'}]'"
        yield Finding("faiss", "missing", meaning)
    elif gpu and "faiss-cpu" in faiss:
        meaning = "pip uninstall -y faiss-cpu, then pip install 'raymed[gpu]'"
        yield Finding("faiss", "missing", f"{installed} searches on the CPU; for the GPU {meaning}")
    else:
        yield Finding("faiss", "ok", installed)


def ray_cluster() -> Iterator[Finding]:
    """A running cluster, its token, and the shared memory that Ray's object store lives in."""
    current = Path(os.environ.get("TMPDIR", "/tmp"), "ray", "ray_current_cluster")  # where Ray looks for it
    given = os.environ.get("RAY_ADDRESS", "")
    address = given.replace("auto", "") or read_text(current)
    if _answers(address):
        yield Finding("Ray", "ok", f"a cluster answers at {address}")
    elif given:
        yield Finding(
            "Ray", "missing", f"{address or given} does not answer: `ray start --head`, or unset RAY_ADDRESS to work locally"
        )
    else:  # a Ray that was killed leaves its address behind
        yield Finding("Ray", "ok", "no cluster is running; jobs start Ray on this machine by themselves")
    if os.environ.get("RAY_AUTH_TOKEN") or (Path.home() / ".ray" / "auth_token").is_file():
        yield Finding("Ray token", "ok", "there; every node needs the same one")
    else:
        meaning = "`ray job submit` will say 'Authentication required': run `ray get-auth-token --generate`"
        yield Finding("Ray token", "missing", meaning)
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        text = f"{free / GIB:.1f} GiB free"
        if free < LOW_SHARED:
            text += (
                ": Ray keeps decoded slices on disk instead, which is slow; start the container with --shm-size=8g or more"
            )
        yield Finding("shared memory", "ok" if free >= LOW_SHARED else "missing", text)


def storage(folder: Folder) -> Iterator[Finding]:
    """Whether the storage can be written, and how much fits."""
    try:
        folder.check_writable()
    except (UserError, OSError) as error:
        yield Finding("storage", "wrong", str(error))
        return
    yield Finding("storage", "ok", f"{folder.uri} can be written")
    if folder.is_local:
        there = next(path for path in (Path(folder.path), *Path(folder.path).parents) if path.exists())
        free = shutil.disk_usage(there).free
        enough = free >= LOW_DISK
        text = f"{free / GIB:.0f} GiB free" + (
            "" if enough else ": a search's checkpoints may fill it; free space or move --storage"
        )
        yield Finding("disk", "ok" if enough else "missing", text)


def tracking(uri: str) -> Finding:
    """Whether MLflow's server or database can be reached."""
    from raymed.tracking.address import check_reachable

    try:
        check_reachable(uri)
        return Finding("MLflow", "ok", uri)
    except UserError as error:
        return Finding("MLflow", "wrong", str(error))


def model(settings: ModelSettings, labels: LabelTable, size: int) -> Iterator[Finding]:
    """Whether the network can be built from its folder, with all weights, and its checkpoints find room on this machine."""
    from raymed.models import classifiers
    from raymed.training.staging import lack_of_room, staging_bytes

    try:
        classifiers.check(settings.located(), tuple(labels.codes), size)
        module = classifiers.build(settings.located(), tuple(labels.codes), size)
    except UserError as error:
        yield Finding("model", "wrong", str(error))
        return
    count, need = sum(parameter.numel() for parameter in module.parameters()), staging_bytes(module)
    yield Finding("model", "ok", f"{settings.origin}: every weight fits, {count / 1e6:.1f} million parameters")
    text = f"up to {need / GIB:.2f} GiB each, put together in {tempfile.gettempdir()}"
    lack = lack_of_room(need)
    yield Finding("checkpoints", "wrong" if lack else "ok", lack or text)


def data(uri: str) -> Iterator[Finding]:
    """Whether prepared data are whole and free of leaks."""
    try:
        prepared = Prepared.open(uri)
        proof = guard(prepared.index, None, prepared.manifest.patients_known)
    except UserError as error:
        yield Finding("data", "wrong", str(error))
        return
    there = set(prepared.folder.child("shards").names())
    lost = sorted(set(prepared.index["shard"].unique().to_pylist()) - there)
    if lost:
        yield Finding("data", "wrong", f"{len(lost)} shards are missing, e.g. {lost[0]}: prepare the data again")
    else:
        yield Finding("data", "ok", f"{uri}: {prepared.index.num_rows} slices, digest {prepared.digest}")
    yield Finding("splits", "ok", str(proof))


def _version(distribution: str) -> str:
    """Of an installed package; empty where it is not there."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _answers(address: str) -> bool:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2):
            return True
    except (OSError, ValueError):
        return False


def read_text(path: Path) -> str:
    """What a file says; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
