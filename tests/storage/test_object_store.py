"""Checkpoints and the search's record in an object store: a local server that speaks S3."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aws_account import allows, deployed, s3_request, statements
from object_store import Bucket, object_store

from raymed.errors import UserError
from raymed.storage import disk
from raymed.storage.folder import Folder
from raymed.storage.lease import holds, lease
from raymed.training.checkpoint import Progress, fetch_newest, new_name, newest_step, publish
from raymed.tuning.journal import COPY, Journal

pytestmark = pytest.mark.slow  # the server takes its time to start


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store") / "requests.log"


@pytest.fixture(scope="module")
def bucket(log) -> Iterator[Bucket]:
    with object_store(log) as uri:
        yield uri


def test_files_are_written_listed_read_and_removed(bucket):
    folder = Folder.at(f"{bucket}/runs").child("search")
    assert folder.names() == []
    assert not folder.exists("a/b.json")
    folder.write("a/b.json", b"one")
    folder.write("a/b.json", b"two")
    assert folder.read("a/b.json") == b"two"
    assert Folder.at(folder.uri).child("a").names() == ["b.json"]
    folder.delete("a")
    assert not folder.exists("a/b.json")


def test_a_bucket_that_does_not_exist_is_an_error_that_names_it(bucket):
    with pytest.raises(UserError, match="s3://nowhere/runs/a"):
        Folder.at("s3://nowhere/runs").write("a", b"")


def test_the_newest_whole_checkpoint_comes_back(bucket, tmp_path, caplog):
    run = Folder.at(f"{bucket}/runs/trial-0000")
    for step in (3, 12):
        (tmp_path / str(step)).mkdir()
        Progress(global_step=step).write(tmp_path / str(step))
        publish(tmp_path / str(step), run, new_name(step, 0))
    assert newest_step(run) == 12
    newest = next(name for name in run.names() if "0012" in name)
    run.write(f"{newest}/progress.json", b"{}")
    found = fetch_newest(run, tmp_path / "local")
    assert found is not None
    assert Progress.read(found).global_step == 3
    assert newest in caplog.text


def test_a_fresh_head_finds_the_record_of_the_search_in_the_storage(bucket, tmp_path):
    folder = Folder.at(f"{bucket}/runs/search")
    journal = Journal(tmp_path / "old-head" / "study.journal", folder)
    for number in range(5):
        journal.append_logs([{"number": number}])
    journal.close()
    fresh = Journal(tmp_path / "fresh-head" / "study.journal", folder)
    assert [entry["number"] for entry in fresh.read_logs(0)] == list(range(5))


def test_a_report_costs_one_request(bucket, log, tmp_path):
    journal = Journal(tmp_path / "study.journal", Folder.at(f"{bucket}/runs/counted"))
    before = log.read_bytes().splitlines()
    with journal.together():
        for number in range(8):
            journal.append_logs([{"number": number}])
    journal.close()
    requests = [line for line in log.read_bytes().splitlines()[len(before) :] if b"HTTP/1" in line]
    assert len(requests) == 2, requests  # a look whether another process has written it


def test_nothing_counts_as_written_that_the_store_has_not_got_and_one_that_stands_still_is_waited_for(bucket, tmp_path):
    """What had been acted on, such as a stop decision, went with the head's disk."""
    folder = Folder.at(f"{bucket}/runs/patient")
    journal = Journal(tmp_path / "study.journal", folder, storage_minutes=1)
    assert folder.read(COPY) == (tmp_path / "study.journal").read_bytes(), "before the first trial begins"
    bucket.server.send_signal(signal.SIGSTOP)
    back = threading.Timer(2, bucket.server.send_signal, [signal.SIGCONT])
    back.start()
    try:
        for number in range(5):
            journal.append_logs([{"number": number}])
            assert folder.read(COPY) == (tmp_path / "study.journal").read_bytes()
    finally:
        back.join()


def test_a_head_that_comes_back_puts_nothing_over_what_its_successor_wrote(bucket, tmp_path):
    """Its old copy took the place of one that was done."""
    folder = Folder.at(f"{bucket}/runs/back")
    cut_off = Journal(tmp_path / "cut-off" / "study.journal", folder)
    successor = Journal(tmp_path / "successor" / "study.journal", folder)
    successor.append_logs([{"number": 1}])
    with pytest.raises(UserError, match=f"another process has written or removed {folder.uri}/{COPY}"):
        cut_off.append_logs([{"number": 2}])
    assert folder.read(COPY) == (tmp_path / "successor" / "study.journal").read_bytes()
    cut_off._copied, cut_off._length = 0, len(folder.read(COPY))  # as after a put that was taken and not answered
    (tmp_path / "cut-off" / "study.journal").write_bytes(folder.read(COPY))
    cut_off._copy()


def test_a_late_copy_of_a_head_that_was_cut_off_does_not_end_its_successor(bucket, tmp_path):
    """The put was on its way when the head stood still; the successor holds the search."""
    storage = Folder.at(f"{bucket}/runs")
    folder, path = storage.child("late"), tmp_path / "successor" / "study.journal"
    Journal(tmp_path / "cut-off" / "study.journal", folder)
    with lease(storage, "late"):
        successor = Journal(path, folder, is_ours=lambda: holds(storage, "late"))
        successor.append_logs([{"number": 1}])
        folder.write(COPY, folder.read(COPY).splitlines(keepends=True)[0] + b"what the other wrote")
        successor.append_logs([{"number": 2}])
        assert folder.read(COPY) == path.read_bytes()
    folder.write(COPY, b"another's")
    with pytest.raises(UserError, match="another process has written"):
        successor.append_logs([{"number": 3}])


def test_a_record_that_cannot_be_read_for_a_moment_is_copied_all_the_same(bucket, tmp_path, monkeypatch):
    """On a home folder in a network the search ended with a bare error of the system."""
    folder, path = Folder.at(f"{bucket}/runs/unread"), tmp_path / "study.journal"
    journal, read, refused = Journal(path, folder, storage_minutes=1), disk.read, [OSError(5, "Input/output error")]

    def blink(file):
        if refused:
            raise refused.pop()
        return read(file)

    monkeypatch.setattr("raymed.storage.disk.read", blink)
    monkeypatch.setattr("raymed.storage.availability.PAUSE", 0.01)
    journal.append_logs([{"number": 1}])
    assert not refused and folder.read(COPY) == path.read_bytes()


def test_a_copy_that_is_gone_is_put_again_by_who_holds_the_search_and_by_nobody_else(bucket, tmp_path):
    """A head that was cut off would have brought back a search that was forgotten meanwhile."""
    folder, is_ours = Folder.at(f"{bucket}/runs/gone"), [True]
    journal = Journal(tmp_path / "study.journal", folder, is_ours=lambda: is_ours[0])
    folder.delete(COPY)
    journal.append_logs([{"number": 1}])
    assert folder.read(COPY) == (tmp_path / "study.journal").read_bytes()
    folder.delete(COPY)
    is_ours[0] = False
    with pytest.raises(UserError, match="another process has written or removed"):
        journal.append_logs([{"number": 2}])
    assert not folder.exists(COPY)


def test_a_copy_that_lacks_what_a_killed_process_wrote_is_there_before_anybody_acts_on_it(bucket, tmp_path):
    folder = Folder.at(f"{bucket}/runs/behind")
    Journal(tmp_path / "study.journal", folder).append_logs([{"number": 1}])
    behind = b"".join(folder.read(COPY).splitlines(keepends=True)[:-1])
    folder.write(COPY, behind)
    Journal(tmp_path / "study.journal", folder)
    assert folder.read(COPY) == (tmp_path / "study.journal").read_bytes() != behind


def test_two_heads_on_one_bucket_do_not_both_write_a_search(bucket):
    """The other head died: its claim expires by the store's own clock."""
    storage = Folder.at(f"{bucket}/runs")
    claims = storage.child(".leases/search")
    claims.write("other.json", b'{"host": "elsewhere", "machine": "elsewhere", "pid": 1, "started": "1"}')
    with pytest.raises(UserError, match="1 on elsewhere"), lease(storage, "search"):
        pass
    assert claims.names() == ["other.json"]
    claims.delete("other.json")
    with lease(storage, "search"):
        assert len(claims.names()) == 1
    assert claims.names() == []


def test_all_that_was_asked_of_the_bucket_is_allowed_to_heads_and_workers(bucket, log, tmp_path):
    """Of all tests here, and of a file that is sent in parts; a missing permission would be a 403 in the night."""
    Folder.at(f"{bucket}/runs").check_writable()
    with Folder.at(f"{bucket}/runs").filesystem.open_output_stream("bucket/runs/large") as stream:
        for _ in range(12):
            stream.write(bytes(1 << 20))
    lines = re.findall(r'"([A-Z]+) (/bucket\S*) HTTP', log.read_text())
    lines.remove(("PUT", "/bucket"))  # that has made it
    requests = {s3_request(*line)[:2] for line in lines}
    actions = {action.removeprefix("s3:") for action, _ in requests}
    assert actions == {"ListBucket", "GetObject", "PutObject", "DeleteObject"}
    name = deployed("eu-central-1")["Bucket"]
    for role in ("raymed-head", "raymed-worker"):
        policy = statements(role)
        asked = [(action, resource.replace(":::bucket", f":::{name}"), {}) for action, resource in requests]
        assert [request for request in asked if not allows(policy, request)] == []
