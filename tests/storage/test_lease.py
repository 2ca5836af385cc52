"""One process holds a lease, wherever it runs, and one that died or was cut off loses it."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pytest import MonkeyPatch

from raymed import clock
from raymed.errors import UserError
from raymed.storage import heartbeat, holder
from raymed.storage.folder import Folder, require_mounted
from raymed.storage.heartbeat import BACK
from raymed.storage.lease import _held, lease

ELSEWHERE = {"host": "elsewhere", "machine": "elsewhere 1", "pid": 1, "started": "1"}


@pytest.fixture(autouse=True)
def _second_look_comes_at_once(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr("raymed.storage.lease.BACK", 0.0)


@pytest.fixture
def told(monkeypatch: MonkeyPatch) -> list[str]:
    """Why holders in this process, whose hearts beat fast, were to end."""
    monkeypatch.setattr(heartbeat, "BEAT", 0.05)
    reasons = list[str]()
    monkeypatch.setattr(holder, "end", lambda code, reason: reasons.append(reason))
    return reasons


def hold(storage: Path, held: Any, release: Any) -> None:
    with lease(Folder.at(storage), "search"):
        held.set()
        release.wait()


def claims(storage: Path) -> list[Path]:
    return sorted((storage / ".leases" / "search").glob("*.json"))


def expired(storage: Path) -> Path:
    """The claim of a process on another machine, which has not renewed it for years."""
    claim = storage / ".leases" / "search" / "theirs.json"
    claim.parent.mkdir(parents=True)
    claim.write_text(json.dumps(ELSEWHERE))
    os.utime(claim, (1, 1))
    return claim


@pytest.mark.slow
def test_a_second_process_is_refused_and_a_killed_one_lets_go_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, held, release))
    other.start()
    assert held.wait(120)
    with (
        pytest.raises(UserError, match=rf"'search' is running in another process \({other.pid} on"),
        lease(Folder.at(tmp_path), "search"),
    ):
        pass
    assert len(claims(tmp_path)) == 1, "who was refused leaves no claim"
    with lease(Folder.at(tmp_path), "another search"):
        pass
    os.kill(int(other.pid or 0), signal.SIGKILL)
    os.waitid(os.P_PID, int(other.pid or 0), os.WEXITED | os.WNOWAIT)  # dead, but still in the table of processes
    with lease(Folder.at(tmp_path), "search"), lease(Folder.at(tmp_path), "search"):
        assert len(claims(tmp_path)) == 1
    other.join()
    assert not claims(tmp_path)


def test_a_machine_that_stood_still_while_it_took_the_lease_does_not_hold_it(
    tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """Meanwhile it may have been taken for dead, and its claim removed by a process that holds the lease now."""
    times = iter([0.0, 100.0])
    monkeypatch.setattr(clock, "uptime", lambda: next(times))
    with pytest.raises(UserError, match=r"took 100 s.*Give the same command again"), lease(Folder.at(tmp_path), "search"):
        pass
    assert not claims(tmp_path)


def test_of_two_that_find_the_same_dead_claim_the_slower_is_not_stopped_by_its_end(
    tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    dead = expired(tmp_path)
    delete = Folder.delete

    def slower(folder: Folder, name: str = "") -> None:
        if name == dead.name:
            dead.unlink()
            raise FileNotFoundError(name)
        delete(folder, name)

    monkeypatch.setattr(Folder, "delete", slower)
    with lease(Folder.at(tmp_path), "search"):
        assert len(claims(tmp_path)) == 1


def test_a_holder_on_another_machine_counts_until_its_heart_has_not_beaten_for_a_minute(tmp_path: Path) -> None:
    claim = tmp_path / ".leases" / "search" / "theirs.json"
    claim.parent.mkdir(parents=True)
    claim.write_text(json.dumps(ELSEWHERE))
    past = time.time() - heartbeat.EXPIRES + 10
    os.utime(claim, (past, past))
    with pytest.raises(UserError, match=r"1 on elsewhere, last seen 5\d s ago"), lease(Folder.at(tmp_path), "search"):
        pass
    os.utime(claim, (past - 20, past - 20))
    with lease(Folder.at(tmp_path), "search"):
        assert not claim.exists()


def test_a_storage_is_known_by_marks_that_go_with_their_leases_and_those_of_killed_processes_after_a_month(
    tmp_path: Path,
) -> None:
    """Who was cut off for less is told from its mark that the storage is there, and from its claim that it is over."""
    folder = tmp_path / ".leases" / "search"
    folder.mkdir(parents=True)
    for name, age in (("old.mark", 31 * 86400), ("new.mark", 86400)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age,) * 2)
    with lease(Folder.at(tmp_path), "search"):
        (mark,) = {*folder.glob("*.mark")} - {folder / "old.mark", folder / "new.mark"}
        assert not (folder / "old.mark").exists()
        with lease(Folder.at(tmp_path), "another search"):
            require_mounted(folder)
        mark.rename(tmp_path / "elsewhere")
        with pytest.raises(FileNotFoundError, match=mark.name):
            Folder.at(tmp_path / "new").make()
        (tmp_path / "elsewhere").rename(mark)
    deadline = time.monotonic() + 10
    while mark.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [each.name for each in folder.iterdir()] == ["new.mark"]
    Folder.at(tmp_path / "new").make()


def test_a_head_that_began_below_a_mount_point_ends_once_the_storage_is_back_and_waits_while_it_is_not(
    tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """Its workers would write among those of the search that is there."""
    reasons = list[str]()
    monkeypatch.setattr(holder, "end", lambda code, reason: reasons.append(reason))
    mount = tmp_path / "mount"
    with lease(Folder.at(mount), "search"):
        (claim,) = _held.values()
        assert claim._renew()
        mount.rename(tmp_path / "root")
        with pytest.raises(FileNotFoundError):
            claim._renew()
        assert not reasons, "the storage is away"
        (mount / ".leases" / "search").mkdir(parents=True)
        assert not claim._renew()
        assert len(reasons) == 1 and "another one is in its place" in reasons[0]
        shutil.rmtree(mount)
        (tmp_path / "root").rename(mount)
        assert claim._renew()


def test_a_second_look_comes_after_a_heartbeat_and_counts_as_no_delay(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """And who had left by then leaves a claim that is as old as the wait: it is written again."""
    assert BACK > heartbeat.BEAT
    claim = expired(tmp_path)

    def leave(seconds: float) -> None:
        claim.unlink()
        os.utime(*claims(tmp_path), (1, 1))

    times = iter([0.0, BACK + 25.0])
    monkeypatch.setattr(clock, "uptime", lambda: next(times))
    monkeypatch.setattr("raymed.storage.lease.BACK", BACK)
    monkeypatch.setattr(clock, "sleep", leave)
    with lease(Folder.at(tmp_path), "search"):
        (own,) = claims(tmp_path)
        assert time.time() - own.stat().st_mtime < heartbeat.EXPIRES


def test_whoever_was_taken_for_dead_while_it_looked_does_not_hold_it(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    expired(tmp_path)
    monkeypatch.setattr(clock, "sleep", lambda seconds: [each.unlink() for each in claims(tmp_path)])
    with (
        pytest.raises(UserError, match=r"taken this one for dead\. Give the same command"),
        lease(Folder.at(tmp_path), "search"),
    ):
        pass


def test_a_holder_that_is_back_from_a_full_storage_or_from_standing_still_is_not_taken_over(
    tmp_path: Path, monkeypatch: MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It renews its claim within a heartbeat's time; two held the lease for that long."""
    claim = expired(tmp_path)
    monkeypatch.setattr(clock, "sleep", lambda seconds: os.utime(claim))
    with (
        caplog.at_level("INFO", "raymed"),
        pytest.raises(UserError, match=r"1 on elsewhere, last seen 0 s ago"),
        lease(Folder.at(tmp_path), "search"),
    ):
        pass
    assert claims(tmp_path) == [claim] and "search was held on elsewhere" in caplog.text


@pytest.mark.slow
def test_of_many_that_come_at_once_at_most_one_holds_it(tmp_path: Path) -> None:
    script = f"""
import sys, time
from raymed.errors import UserError
from raymed.storage.lease import lease
from raymed.storage.folder import Folder
while time.time() < {time.time() + 6}: pass
for _ in range(30):
    try:
        with lease(Folder.at({str(tmp_path)!r}), "search"):
            file = open({str(tmp_path / "inside")!r}, "x"); file.close()
            import os; time.sleep(0.005); os.unlink(file.name)
            print("held")
    except UserError: pass
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)
    ]
    said = [process.communicate(timeout=100) for process in processes]
    assert [error.decode()[-300:] for _, error in said] == [""] * 4, "two were inside at once"
    assert any(out for out, _ in said)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_process_whose_claim_was_taken_for_dead_ends_at_once(tmp_path: Path) -> None:
    """It took two minutes to leave, as if a person had told it to, and wrote beside its successor meanwhile."""
    script = """'Hold a lease.'
from raymed.job.job import JobOptions, Outcome, run
from raymed.storage import heartbeat
from raymed.storage.lease import lease
from raymed.storage.folder import Folder
import signal, time
heartbeat.BEAT = 0.1
def main(options):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with lease(options.folder, "search"):
        print("held", flush=True)
        time.sleep(500)
    return Outcome("", {})
run(JobOptions, main)
"""
    (tmp_path / "hold.py").write_text(script)
    command = [sys.executable, str(tmp_path / "hold.py"), "--json", "--storage", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()
        claims(tmp_path)[0].unlink()
        out, error = process.communicate(timeout=20)
    assert b"error: another process has taken search over" in error
    assert process.returncode == 1
    told = json.loads(out)
    assert told["exit_code"] == 1 and told["error"].startswith("another process has taken search over"), "without a word"


def test_of_two_that_hold_it_the_one_that_was_cut_off_ends(tmp_path: Path, told: list[str]) -> None:
    """Both ended, because each saw the other's claim renewed: the search stood still until somebody looked."""
    cut_off = tmp_path / ".leases" / "search" / "cut-off.json"
    cut_off.parent.mkdir(parents=True)
    cut_off.write_text(json.dumps(ELSEWHERE | {"term": 3}))
    os.utime(cut_off, (1, 1))
    with lease(Folder.at(tmp_path), "search"):
        (own,) = claims(tmp_path)
        assert json.loads(own.read_text())["term"] > 3
        for _ in range(20):  # it comes back, and its heart beats on
            cut_off.write_text(json.dumps(ELSEWHERE | {"term": 3}))
            time.sleep(0.05)
        assert not told, "who took over goes on"
        while not told:
            cut_off.write_text(json.dumps(ELSEWHERE | {"term": time.time()}))  # somebody took over from this one
            time.sleep(0.05)


def test_one_that_was_cut_off_is_known_though_who_took_over_has_ended_since(tmp_path: Path, told: list[str]) -> None:
    """Terms began anew with a lease that nobody held: who came back ended the holder, and went on with an old record."""
    with lease(Folder.at(tmp_path), "search"):
        (first,) = claims(tmp_path)
        while not (term := json.loads(first.read_text() or "{}").get("term")):
            time.sleep(0.01)  # for its first beat
    time.sleep(1.1)
    with lease(Folder.at(tmp_path), "search"):
        for _ in range(20):
            first.write_text(json.dumps(ELSEWHERE | {"term": term}))
            time.sleep(0.05)
        assert not told, "who holds it goes on"


def test_a_storage_that_is_away_between_two_looks_ends_nobody(
    tmp_path: Path, told: list[str], monkeypatch: MonkeyPatch
) -> None:
    looks, exists = list[str](), Folder.exists
    with lease(Folder.at(tmp_path), "search"):
        (own,) = claims(tmp_path)

        def blink(folder: Folder, name: str = "") -> bool:
            looks.append(name)
            return exists(folder, name) and not (name == own.name and looks.count(name) == 1)

        monkeypatch.setattr(Folder, "exists", blink)
        while looks.count(own.name) < 4 and not told:
            time.sleep(0.05)
    assert not told


def test_the_folders_of_a_lease_outlive_a_power_cut_whoever_made_them(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """A process was killed before it wrote out the name of a folder that it had made; the holder's claim went with it."""
    (tmp_path / ".leases" / "search").mkdir(parents=True)
    kept = list[Path]()
    monkeypatch.setattr("raymed.storage.disk.keep", lambda path: kept.append(Path(path)))
    with lease(Folder.at(tmp_path), "search"):
        assert {tmp_path, tmp_path / ".leases"} <= set(kept)


@pytest.mark.slow
def test_a_storage_that_is_unmounted_for_a_while_takes_no_lease_away(tmp_path: Path) -> None:
    """Its folder is not there, and nothing is written where it was."""
    script = f"""
from raymed.storage import heartbeat
from raymed.storage.lease import lease
from raymed.storage.folder import Folder
import sys
heartbeat.BEAT = 0.05
with lease(Folder.at({str(tmp_path / "storage")!r}), "search"):
    print("held", flush=True)
    sys.stdin.readline()
print("ended", flush=True)
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (tmp_path / "storage").rename(tmp_path / "elsewhere")
        time.sleep(0.5)
        assert process.poll() is None and not (tmp_path / "storage").exists()
        (tmp_path / "elsewhere").rename(tmp_path / "storage")
        time.sleep(0.2)
        assert len(claims(tmp_path / "storage")) == 1
        out, error = process.communicate("\n", timeout=30)
    assert (out, error) == ("ended\n", "")


def test_a_damaged_claim_counts_by_its_age(tmp_path: Path) -> None:
    claim = tmp_path / ".leases" / "search" / "theirs.json"
    claim.parent.mkdir(parents=True)
    claim.write_text("nul")
    with pytest.raises(UserError, match="another process"), lease(Folder.at(tmp_path), "search"):
        pass
    os.utime(claim, (1, 1))
    with lease(Folder.at(tmp_path), "search"):
        pass


def test_a_storage_that_is_away_for_a_while_is_no_sign_that_another_process_took_over(
    tmp_path: Path, told: list[str]
) -> None:
    storage = tmp_path / "storage"
    with lease(Folder.at(storage), "search"):
        storage.rename(tmp_path / "away")
        time.sleep(0.2)
        assert not storage.exists(), "nothing is written below a mount point"
        (tmp_path / "away").rename(storage)
        time.sleep(0.2)
        assert len(claims(storage)) == 1
    assert not told


def test_a_process_that_was_killed_while_it_looked_does_not_end_the_holder(tmp_path: Path, told: list[str]) -> None:
    """Its claim stays, and is never renewed; one that is renewed is of a process that took the lease over."""
    left = tmp_path / ".leases" / "search" / "left.json"
    with lease(Folder.at(tmp_path), "search"):
        left.write_text(json.dumps(ELSEWHERE))
        time.sleep(0.5)
        assert not told
        while not told:
            left.write_text(json.dumps(ELSEWHERE | {"term": time.time()}))
            time.sleep(0.05)
    assert claims(tmp_path) == [left]


def test_a_storage_that_hangs_keeps_nobody_from_leaving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that gave up waiting for a dead server waited for it for ever at its very end."""
    monkeypatch.setattr(heartbeat, "BEAT", 0.02)
    monkeypatch.setattr(heartbeat, "LEAVING", 0.2)
    hangs, answers = threading.Event(), threading.Event()
    exists = Folder.exists

    def no_answer(folder: Folder, name: str = "") -> bool:
        if not answers.is_set():
            hangs.set()
            answers.wait(60)
        return exists(folder, name)

    monkeypatch.setattr(Folder, "exists", no_answer)
    with lease(Folder.at(tmp_path), "search"):
        assert hangs.wait(30)
        since = time.monotonic()
    left_after = time.monotonic() - since
    answers.set()
    assert left_after < 20


def test_where_a_process_id_says_nothing_a_claim_counts_by_its_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc, another process that has the dead one's id by now kept everybody out for ever."""
    monkeypatch.setattr(holder, "_machine", lambda: "")
    claim = tmp_path / ".leases" / "search" / "theirs.json"
    claim.parent.mkdir(parents=True)
    claim.write_text(json.dumps(holder.myself()))
    with pytest.raises(UserError, match="another process"), lease(Folder.at(tmp_path), "search"):
        pass
    os.utime(claim, (1, 1))
    with lease(Folder.at(tmp_path), "search"):
        assert not claim.exists()


def test_a_process_of_another_account_that_proc_does_not_show_is_not_taken_for_dead(monkeypatch: MonkeyPatch) -> None:
    """With `hidepid`; its age decides, then."""

    def refused(pid: int, number: int) -> None:
        raise PermissionError

    theirs = holder.myself() | {"pid": 2**22 + 1}
    assert holder.has_ended(theirs) is True
    monkeypatch.setattr(os, "kill", refused)
    assert holder.has_ended(theirs) is None
