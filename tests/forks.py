"""Processes that need not import the large libraries first: each is a fork of one that has.

This file, run as one, is such a server. It imports for seconds and forks for each that asks at its socket, until its own
input ends. Jobs are run so (`commands.py`), and the workers of Ray, which it starts with `quick_python.py`: those of one
environment by a fork that has imported Ray and the project in it, as both keep what they find there.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest import mock

ROOT = Path(__file__).parent.parent

WORKERS = (
    *("torch", "mlflow", "optuna", "pandas", "pyarrow.dataset", "scipy.stats", "pydicom", "nibabel", "matplotlib.figure"),
    *("transformers.models.bert.modeling_bert", "transformers.models.internvl.modeling_internvl", "deepspeed"),
    "deepspeed.runtime.zero.muon.muon_optimizer",  # with PyTorch's compiler, which takes a second
)
"""What Ray's workers find imported, whatever their environment."""

IN_IT = ("ray.data", "ray.tune", "ray.train.torch", "raymed.training.fit", "raymed.tuning.search")
"""What they find imported in their environment."""

OWN = frozenset({"PYTEST_CURRENT_TEST"})
"""In which workers of one environment may differ. Not in the number of their raylet: Ray keeps it as it is imported, and a
worker ends with the raylet of that number."""

SCRIPTS = (*WORKERS, "ray.data", "ray.tune", "ray.train.torch")

MOST = 1 << 20  # bytes of a command with its environment


def run(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None, root: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run a file of Python, with its words, to its end. A Ray that it starts has quick workers.

    Args:
        folder: where it is run.
        environment: instead of this process's.
        root: of the project that it imports.
    """
    variables = {**(os.environ if environment is None else environment), "PYTHONPATH": str(root)}
    request = [list(command), str(folder), variables, _umask(), quick_python()]
    with (
        tempfile.TemporaryFile() as nothing,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server,
    ):
        server.connect(_server(SCRIPTS))
        socket.send_fds(server, [json.dumps(request).encode()], [file.fileno() for file in (nothing, output, errors)])
        code = int(server.recv(100))
        for file in (output, errors):
            file.seek(0)
        return subprocess.CompletedProcess(command, code, output.read().decode(), errors.read().decode())


@contextlib.contextmanager
def quick_workers() -> Iterator[None]:
    """A Ray that is started within it has forks for workers."""
    with mock.patch.object(sys, "executable", quick_python()):
        yield


def starting_quick(script: str | Path, *words: str) -> list[str]:
    """The command of a process that is no fork, which begins slowly; a Ray that it starts has quick workers."""
    begin = (
        f"import os, runpy, sys; sys.executable, sys.argv = {quick_python()!r}, sys.argv[1:]; "
        "sys.path[0] = os.path.dirname(sys.argv[0]); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return [sys.executable, "-c", begin, str(script), *words]


@cache
def quick_python() -> str:
    path = Path(_server(WORKERS)).with_name("python")
    path.write_text(f"#!{sys.executable} -IS\n{Path(__file__).with_name('quick_python.py').read_text('utf-8')}")
    path.chmod(stat.S_IRWXU)
    return str(path)


@cache
def quick_scripts() -> str:
    """A quick Python whose scripts are forks, too: of a process that imports Ray as it is configured now."""
    python = quick_python()
    Path(python).with_name("scripts").symlink_to(_server(SCRIPTS))
    return python


@cache
def _server(libraries: tuple[str, ...]) -> str:
    """The socket of a server, which ends with this process."""
    address = Path(tempfile.mkdtemp(prefix="forks-", dir="/tmp"), "socket")  # its path must be short
    command = [sys.executable, __file__, str(address), "by environment" if libraries is WORKERS else "", *libraries]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    while not address.exists():
        assert server.poll() is None, "it does not start"
        time.sleep(0.02)
    return str(address)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def listen(address: Path) -> socket.socket:
    """Whoever sees the address can ask at once, and waits for the imports."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{address}.new")
    listener.listen(64)
    Path(f"{address}.new").rename(address)
    return listener


def serve(folder: Path, listener: socket.socket, libraries: Sequence[str], by_environment: bool = False) -> NoReturn:
    """Fork for each that asks, and answer with its exit code. The fork of one that leaves before is killed.

    Args:
        folder: of the sockets; it goes with the server.
        by_environment: let a fork for each environment serve those that have it, and answer with the name of its socket.
    """
    os.dup2(2, 1)  # what libraries print is nobody's output
    gc.disable()  # to look through what is imported takes as long as half of it
    for library in libraries:
        with _numbers_by_the_system() if library.startswith("ray") else contextlib.nullcontext():
            importlib.import_module(library)
    gc.freeze()  # a fork that looked whether they are needed would copy all these pages
    gc.enable()
    ends, ended = os.pipe()
    os.set_blocking(ended, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(ended, warn_on_full_buffer=False)
    running: dict[socket.socket, int] = {}
    servers: dict[frozenset[tuple[str, str]], tuple[str, int]] = {}  # of their sockets' names and their inputs

    def leave() -> None:
        """Close in a fork what is the server's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for held in (listener, asker, *running):
            held.close()
        for end in (ends, ended, *(feed for _, feed in servers.values())):
            os.close(end)

    while True:
        sources: list[Any] = [0, ends, listener, *running]
        ready = select.select(sources, [], [])[0]
        if 0 in ready and not os.read(0, 1):
            for child in running.values():
                os.kill(child, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(0)
        if ends in ready:
            os.read(ends, 1000)
        for asker, child in list(running.items()):
            if asker in ready:  # it says nothing more: it has left
                os.kill(child, signal.SIGKILL)
            pid, status = os.waitpid(child, 0 if asker in ready else os.WNOHANG)
            if pid:
                with contextlib.suppress(OSError):
                    asker.send(str(os.waitstatus_to_exitcode(status)).encode())
                asker.close()
                del running[asker]
        if listener in ready:
            asker, _ = listener.accept()
            request, outputs, _, _ = socket.recv_fds(asker, MOST, 3)
            if not request:
                asker.close()
                continue
            command, where, variables, umask, python = json.loads(request)
            if by_environment:
                environment = frozenset(item for item in variables.items() if item[0] not in OWN)
                if environment not in servers:
                    name = f"socket-{len(servers)}"
                    theirs = listen(folder / name)
                    ending, feed = os.pipe()
                    if not os.fork():
                        leave()
                        for end in (feed, *outputs):
                            os.close(end)
                        os.dup2(ending, 0)
                        enter(variables)
                        serve(folder, theirs, IN_IT)
                    theirs.close()
                    os.close(ending)
                    servers[environment] = name, feed
                asker.send(servers[environment][0].encode())
                asker.close()
            elif child := os.fork():
                running[asker] = child
            else:
                leave()
                become(command, where, variables, umask, python, outputs, folder)
            for output in outputs:
                os.close(output)


@contextlib.contextmanager
def _numbers_by_the_system() -> Iterator[None]:
    """Ray draws a number for each class of actors, by a generator that forks would go on with: all their objects would have
    the same numbers."""
    import ray.actor

    number = ray.actor.ActorClassID
    drawn = SimpleNamespace(from_random=lambda: number(os.urandom(number.size())))
    with mock.patch.object(ray.actor, "ActorClassID", drawn):
        yield


def enter(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))


def become(
    command: list[str],
    folder: str,
    environment: dict[str, str],
    umask: int,
    python: str,
    outputs: Sequence[int],
    server: Path,
) -> NoReturn:
    """What the process that ``PYTHON COMMAND`` begins would do."""
    for descriptor, output in enumerate(outputs):
        os.dup2(output, descriptor)
        os.close(output)
    os.setpgid(0, 0)  # Ray kills a worker's group
    os.chdir(folder)
    os.umask(umask)
    enter(environment)
    sys.executable = python
    code: object = 0
    try:
        _run(_worker_of(command, server / "python") if command[0].endswith("/setup_worker.py") else command)
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _run(command: list[str]) -> None:
    sys.argv, sys.path[0] = command, os.path.dirname(command[0])  # noqa: PTH120
    runpy.run_path(command[0], run_name="__main__")


class _Begins(BaseException):
    """In place of an `exec`."""


def _worker_of(command: list[str], quick: Path) -> list[str]:
    """The worker that Ray's ``setup_worker.py`` has a shell begin once its environment is prepared."""
    execvp = os.execvp

    def begin(file: str, args: list[str]) -> None:
        prefix, _, worker = args[-1].partition("exec ")
        _, words = worker.split(" ", 1)
        if prefix:  # it is in another folder, and has another environment, in which it asks anew
            execvp(file, [*args[:-1], f"{prefix}exec {quick} {words}"])
        raise _Begins(shlex.split(words))

    with mock.patch.object(os, "execvp", begin):
        try:
            _run(command)
        except _Begins as worker:
            return list(worker.args[0])
    raise SystemExit


if __name__ == "__main__":
    _, address, by_environment, *libraries = sys.argv
    serve(Path(address).parent, listen(Path(address)), libraries, bool(by_environment))
