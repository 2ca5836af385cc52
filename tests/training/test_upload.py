"""A checkpoint on its way into a storage that is full, away, or loses its power."""

import errno
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import gethostname

import pytest

from raymed.errors import StorageError, UserError
from raymed.storage import availability, disk
from raymed.storage.availability import is_refusal, require_there, wait_for
from raymed.storage.copies import copy_folder
from raymed.storage.folder import Folder
from raymed.storage.seal import SEAL, digest_of_file
from raymed.training.upload import upload


@pytest.fixture
def local(tmp_path) -> Path:
    folder = tmp_path / "local"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "weights").write_bytes(b"weights")
    (folder / "progress.json").write_bytes(b"{}")
    return folder


@contextmanager
def small_disk(at: Path, size: str = "64k"):
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "raymed-test", at], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", at], check=False)


def test_files_and_folders_are_written_out_before_anybody_is_told(tmp_path, local, monkeypatch):
    run, synced = tmp_path / "run", set()
    run.mkdir()
    monkeypatch.setattr(os, "fsync", lambda file: synced.add(str(Path(f"/proc/self/fd/{file}").readlink())))
    upload(local, Folder.at(run), "step-1")
    written = {str(path) for path in run.rglob("*")}
    assert synced == written | {str(run), str(tmp_path)}, "the run's own name too, which Ray Train only gives"
    assert (run / "step-1" / "model" / "weights").read_bytes() == b"weights"


def test_a_full_disk_is_said_at_once_and_what_to_do(tmp_path, local):
    with small_disk(tmp_path / "disk"):
        run = Folder.at(tmp_path / "disk")
        (local / "large").write_bytes(bytes(2**20))
        with pytest.raises(StorageError, match=r"(?s)disk cannot be used: .*No space left.*Free space"):
            wait_for(lambda: upload(local, run, "step-1"), run, 20, pytest.fail)


def test_a_disk_that_is_read_only_is_said_at_once(tmp_path, local):
    with small_disk(tmp_path / "disk"):
        run = Folder.at(tmp_path / "disk")
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        with pytest.raises(StorageError, match="Read-only file system"):
            wait_for(lambda: upload(local, run, "step-1"), run, 20, pytest.fail)


def test_an_unmounted_disk_is_waited_for_and_nothing_is_written_below_its_mount_point(tmp_path, local, monkeypatch):
    monkeypatch.setattr(availability, "PAUSE", 0.0)
    disk, tries = tmp_path / "disk", []
    with small_disk(disk):
        (disk / "run").mkdir()
        subprocess.run(["mount", "--bind", disk, disk], check=True)  # the same files, mounted twice: one goes away

        def comes_back(error: OSError) -> None:
            tries.append(sorted(path.name for path in disk.rglob("*")))
            if len(tries) == 3:
                subprocess.run(["mount", "--bind", tmp_path / "elsewhere", disk], check=True)

        (tmp_path / "elsewhere" / "run").mkdir(parents=True)
        subprocess.run(["umount", "-l", disk], check=True)
        subprocess.run(["umount", "-l", disk], check=True)
        run = Folder.at(disk / "run")
        wait_for(lambda: upload(local, run, "step-1"), run, 20, comes_back)
        assert tries == [[], [], []]
        assert (tmp_path / "elsewhere" / "run" / "step-1" / "progress.json").exists()


def test_a_storage_that_stays_away_is_given_up_after_the_time_that_was_set(tmp_path, local, monkeypatch):
    monkeypatch.setattr(availability, "PAUSE", 0.0)
    run = Folder.at(tmp_path / "gone")
    with pytest.raises(StorageError, match=rf"gone has been away from {gethostname()} for 0\.001 minutes .*every machine"):
        wait_for(lambda: upload(local, run, "step-1"), run, 0.001)
    with pytest.raises(FileNotFoundError):
        require_there(run)


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError("When uploading part: AWS Error ACCESS_DENIED"), True),
        (OSError(errno.ESTALE, "Stale file handle"), False),
        (OSError(errno.EIO, "Input/output error"), False),
        (OSError("When uploading part: AWS Error NETWORK_CONNECTION"), False),
    ],
)
def test_what_waiting_does_not_mend_is_not_waited_for(error, refused):
    assert is_refusal(error) is refused


@pytest.mark.skipif(sys.platform != "linux", reason="its /proc is a file system whose folders cannot be written out")
def test_a_file_system_that_writes_no_folders_out_takes_checkpoints_all_the_same() -> None:
    """As some network file systems: each checkpoint waited for a storage that was there, and then the run failed."""
    opened = os.open("/proc/self", os.O_RDONLY)
    with pytest.raises(OSError, match="Invalid argument"):
        os.fsync(opened)
    os.close(opened)
    disk.keep(Path("/proc/self"))


class Refusing(BaseHTTPRequestHandler):
    """An object store that lists its bucket and takes nothing."""

    def do_HEAD(self) -> None:
        self._answer(200 if self.path == "/bucket" else 404)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self._answer(403)

    def do_POST(self) -> None:
        self.do_PUT()

    def do_GET(self) -> None:
        self._answer(200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")

    def _answer(self, status: int, content: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


@pytest.mark.parametrize("size", [7, 2**24])
def test_a_file_that_an_object_store_does_not_take_is_not_taken_for_there(tmp_path, monkeypatch, size):
    """Arrow's `copy_files` says nothing: the store answers when the stream closes, and it does not look."""
    (tmp_path / "weights").write_bytes(bytes(size))
    account = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "eu-central-1"}
    for name, value in account.items():
        monkeypatch.setenv(name, value)
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(OSError, match="ACCESS_DENIED"):
            upload(tmp_path, Folder.at("s3://bucket/run"), "step-1")
        (tmp_path / SEAL).write_text(json.dumps({"files": {"weights": digest_of_file(tmp_path / "weights")}}))
        with pytest.raises(UserError, match="weights cannot be copied to"):
            copy_folder(Folder.at(tmp_path), Folder.at("s3://bucket/models"))
        server.shutdown()
