"""Nobody waits for a service that is away, and nothing for it is lost, doubled or out of order."""

import errno
import json
import os
import sqlite3
import time
from pathlib import Path

import pytest

from raymed.errors import UserError
from raymed.storage import disk
from raymed.storage.entries import to_line
from raymed.storage.folder import Folder
from raymed.tracking.outbox import BELIEVED, Denied, Outbox, Refused, Unclear
from raymed.tracking.tracker import Tracker


class Service:
    """Takes entries while it is up."""

    def __init__(self) -> None:
        self.up, self.tries, self.got = True, 0, []
        self.error: Exception = ConnectionError("connection refused")

    def deliver(self, entry: dict) -> None:
        self.tries += 1
        if entry.get("bad"):
            raise UserError("not this one")
        if entry.get("refused"):
            raise Refused("the run was deleted")
        if not self.up:
            raise self.error
        self.got.append(entry)


def until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def entries(count: int) -> list[dict]:
    return [{"number": number} for number in range(count)]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "outbox.jsonl"


def test_all_is_delivered_once_and_in_order_when_the_service_comes_back(path, caplog):
    service = Service()
    outbox = Outbox(path, "the service", service.deliver)
    service.up = False
    for entry in entries(200):
        outbox.put(entry)
    until(lambda: service.tries > 1)
    service.up = True
    outbox.close()
    assert service.got == entries(200)
    assert path.read_text() == "", "what is delivered is not kept"
    assert caplog.text.count("is away") == 1
    assert caplog.text.count("is back") == 1


def test_credentials_that_ran_out_are_waited_for_and_called_so(path, caplog):
    service = Service()
    service.up, service.error = False, Denied("the token has expired")
    outbox = Outbox(path, "the service", service.deliver)
    outbox.put({"number": 1})
    until(lambda: service.tries > 1)
    service.up = True
    outbox.close()
    assert service.got == [{"number": 1}]
    assert "the service refuses the credentials (the token has expired): going on" in caplog.text
    assert "is away" not in caplog.text


def test_credentials_that_ran_out_while_the_service_was_away_are_called_so_too(path, caplog):
    service = Service()
    service.up = False
    outbox = Outbox(path, "the service", service.deliver)
    outbox.put({"number": 1})
    until(lambda: service.tries > 1)
    service.error = Denied("the token has expired")
    until(lambda: "the service refuses the credentials" in caplog.text)
    service.up = True
    outbox.close()
    assert caplog.text.count("is away") == caplog.text.count("refuses the credentials") == 1


def test_what_a_killed_process_left_is_delivered_first(path):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries(3)) + '{"number": 9')
    service = Service()
    outbox = Outbox(path, "the service", service.deliver)
    outbox.put({"number": 3})
    outbox.close()
    assert service.got == entries(4), "and the entry that was cut off, which nobody had put in, is not"


def test_what_a_lost_machine_had_not_delivered_is_delivered_from_its_copy_and_no_copy_stays(path, tmp_path, monkeypatch):
    monkeypatch.setattr("raymed.tracking.outbox.LAST_WAIT", 0.1)
    storage, service = Folder.at(tmp_path / "storage"), Service()
    storage.make()
    service.up = False
    lost = Outbox(path, "the service", service.deliver, copy=storage)
    for entry in entries(3):
        lost.put(entry)
    until(lambda: service.tries and storage.exists(path.name))  # a machine that is lost closes nothing
    lost.close()
    path.unlink()
    monkeypatch.undo()
    other = Service()
    outbox = Outbox(path, "the service", other.deliver, copy=storage)
    outbox.put({"number": 3})
    outbox.close()
    assert other.got == entries(4) and storage.read(path.name) == b""


def test_a_service_that_is_there_costs_no_request_of_the_storage(path, tmp_path):
    storage = Folder.at(tmp_path / "storage")
    storage.make()
    outbox = Outbox(path, "the service", Service().deliver, copy=storage)
    for entry in entries(3):
        outbox.put(entry)
    outbox.close()
    assert storage.names() == []


@pytest.mark.parametrize("damage", [b"", b"\x00\xff\n", b"[1]\n", b"null\n"])
def test_a_damaged_entry_is_left_out_with_a_line_and_the_others_are_delivered(path, damage, caplog):
    path.write_bytes(b'{"number": 0}\n' + damage + b'{"number": 1}\n')
    service = Service()
    Outbox(path, "the service", service.deliver).close()
    assert service.got == entries(2)
    assert (str(path) in caplog.text) == bool(damage)


def test_an_entry_that_can_never_be_delivered_is_an_error_and_not_dropped(path):
    outbox = Outbox(path, "the service", Service().deliver)
    outbox.put({"bad": True})
    with pytest.raises(UserError, match="not this one"):
        outbox.close()


def test_a_locked_database_holds_nobody_up_and_gets_every_metric_once(tmp_path):
    tracker = Tracker.open(f"sqlite:///{tmp_path}/mlflow.db", "lung")
    run = tracker.run("run", "run")
    outbox = Outbox(
        tmp_path / "outbox.jsonl",
        "MLflow",
        lambda entry: tracker.history.log_validation(run, entry["epoch"], {"val_loss": 0.5}),
    )
    database = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    for epoch in range(1, 21):  # the database is locked until all are put: who waited for it here would wait for ever
        outbox.put({"epoch": epoch})
    time.sleep(1)
    database.execute("ROLLBACK")
    outbox.close()
    history = tracker.client.get_metric_history(run, "val_loss")
    assert [metric.step for metric in history] == list(range(1, 21))


def test_an_entry_that_was_changed_on_the_disk_is_not_delivered(path, caplog):
    path.write_bytes(b"".join(map(to_line, entries(3))).replace(b'"number":1', b'"number":7'))
    service = Service()
    Outbox(path, "the service", service.deliver).close()
    assert service.got == [{"number": 0}, {"number": 2}]
    assert "entry 2" in caplog.text and "checksum" in caplog.text


def test_a_full_disk_at_the_start_empties_nothing(path, monkeypatch):
    """300 entries wait, and one is cut off, so that the file is to be written anew."""
    content = b"".join(map(to_line, entries(300))) + b'{"cut'
    path.write_bytes(content)

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="Free space"):
        Outbox(path, "the service", Service().deliver)
    monkeypatch.undo()
    assert path.read_bytes() == content
    service = Service()
    Outbox(path, "the service", service.deliver).close()
    assert service.got == entries(300)


def test_what_was_delivered_is_not_delivered_again_by_the_next_process(path):
    service = Service()
    outbox = Outbox(path, "the service", service.deliver)
    for entry in entries(3):
        outbox.put(entry)
    until(lambda: len(service.got) == 3)
    service.up = False
    for entry in entries(6)[3:]:
        outbox.put(entry)
    until(lambda: path.read_bytes())
    killed = path.read_bytes()
    service.up = True
    until(lambda: b"delivered" in path.read_bytes() or not path.read_bytes())
    outbox.close()
    (path.parent / "killed.jsonl").write_bytes(killed + to_line({"delivered": len(killed.splitlines(keepends=True)[0])}))
    after = Service()
    Outbox(path.parent / "killed.jsonl", "the service", after.deliver).close()
    assert after.got == entries(6)[4:]


def test_a_storage_that_is_away_for_a_moment_empties_no_outbox(path, monkeypatch):
    service = Service()
    service.up = False
    outbox = Outbox(path, "the service", service.deliver)
    outbox.put({"number": 1})
    until(lambda: service.tries)
    exists, looks, again = Folder.exists, [], Service()

    def blink(folder, name=""):
        looks.append(name)
        return exists(folder, name) and (not name or looks.count(name) > 1)

    monkeypatch.setattr(Folder, "exists", blink)
    Outbox(path, "the service", again.deliver).close()
    assert again.got == [{"number": 1}] and path.name in looks
    service.up = True
    outbox.close()


def test_a_torn_write_harms_neither_what_was_there_nor_what_follows(path, monkeypatch):
    service = Service()
    service.up = False
    outbox = Outbox(path, "the service", service.deliver)
    outbox.put({"number": 0})
    with path.open("ab") as file:
        file.write(b'{"number": 99, "ha')  # found no space for the rest
    outbox.put({"number": 1})
    next_one = Service()
    Outbox(path, "the service", next_one.deliver).close()
    assert next_one.got == entries(2)


def test_an_entry_that_the_service_refuses_for_good_is_set_aside_and_holds_up_no_other(path, caplog):
    service = Service()
    outbox = Outbox(path, "the service", service.deliver)
    for entry in ({"number": 0}, {"refused": True}, {"number": 1}):
        outbox.put(entry)
    outbox.close()  # waits for what can be delivered, and would wait for ever for what cannot
    assert service.got == entries(2)
    assert "the run was deleted" in caplog.text and "outbox.refused.jsonl" in caplog.text
    assert b'"refused":true' in (path.parent / "outbox.refused.jsonl").read_bytes()


def test_an_unclear_answer_is_believed_only_if_it_stays(path, caplog, monkeypatch):
    """One value that a database takes never would have held up all that came after it, and each command's end."""
    service, now = Service(), [0.0]
    monkeypatch.setattr("raymed.clock.seconds", lambda: now[0])
    monkeypatch.setattr("raymed.tracking.outbox.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("raymed.tracking.outbox.LONGEST_PAUSE", 0.01)
    service.up, service.error = False, Unclear("the database is busy")
    outbox = Outbox(path, "the service", service.deliver)
    for entry in entries(2):
        outbox.put(entry)
    for error in (Unclear("the database is busy"), ConnectionError("refused"), Unclear("value too long")):
        service.error, tries = error, service.tries
        now[0] += 0.4 * BELIEVED
        until(lambda tries=tries: service.tries > tries + 2)
    assert "set aside" not in caplog.text
    now[0] += BELIEVED
    until(lambda: "set aside" in caplog.text)
    service.up = True
    outbox.close()
    assert service.got == entries(2)[1:]
    assert b'"number":0' in (path.parent / "outbox.refused.jsonl").read_bytes()


def test_a_full_disk_is_told_with_what_to_do_and_only_once(path, monkeypatch) -> None:
    outbox = Outbox(path, "the service", Service().deliver)

    def refuse(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, "append", refuse)
    with pytest.raises(UserError, match="Free space"):
        outbox.put({"number": 0})
    outbox.close()
