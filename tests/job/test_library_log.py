"""No traceback of a library reaches a terminal; it is kept where the support bundle looks for it."""

import logging
import re
import socket
from pathlib import Path

import pytest
from urllib3 import PoolManager, Retry
from urllib3.exceptions import MaxRetryError

from raymed.doctor.support_bundle import _tracebacks
from raymed.job import library_log
from raymed.job.library_log import AskedAgain, OneLine, essence, take_over


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """What a terminal would show of a record."""
    monkeypatch.setattr(library_log.tempfile, "tempdir", str(tmp_path))
    library_log._file.cache_clear()
    yield OneLine("%(message)s").format
    library_log._file.cache_clear()


@pytest.fixture
def urllib3():
    """What makes requests, as it is in a job."""
    logger, asked_again = logging.getLogger("urllib3.connectionpool"), AskedAgain()
    logger.addFilter(asked_again)
    yield
    logger.removeFilter(asked_again)


def test_of_tries_to_reach_a_server_that_is_away_a_terminal_gets_one_line(shown, urllib3, caplog, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        server = f"127.0.0.1:{nobody.getsockname()[1]}"
        for _ in range(2):
            with pytest.raises(MaxRetryError):
                PoolManager().request("GET", f"http://{server}/", retries=Retry(total=3))
        (line,) = caplog.messages
        kept = re.fullmatch(rf"{server} does not answer: it is asked again, .* \(more in (.*)\)", line)
        assert Path(kept[1]).read_text().count("Retrying") == 6
        monkeypatch.setattr(AskedAgain, "ABSENCE", 0.0)
        with pytest.raises(MaxRetryError):
            PoolManager().request("GET", f"http://{server}/", retries=Retry(total=1))
    assert caplog.messages[1:] == [line], "another absence is spoken of"


def record(name: str, text: str, raised: bool = False) -> logging.LogRecord:
    try:
        raise OSError("the disk is gone")
    except OSError as error:
        trace = (type(error), error, error.__traceback__) if raised else None
    return logging.LogRecord(name, logging.ERROR, "", 1, text, (), trace)


def test_a_library_s_traceback_becomes_one_line_and_a_file_of_the_bundle(shown):
    line = shown(record("ray.tune.execution", "Trial task failed", raised=True))
    kept = re.fullmatch(r"Trial task failed \(more in (.*)\)", line)
    assert "OSError: the disk is gone" in Path(kept[1]).read_text()
    assert any("OSError" in text for text in _tracebacks())


def test_a_paragraph_becomes_one_line_and_our_own_words_stay(shown):
    paragraph = "A worker died.\n\nPossible causes are: OOM, SIGSEGV ...\nSee the logs."
    assert shown(record("ray._private.worker", paragraph)).startswith("A worker died. (more in ")
    assert shown(record("raymed", "two\nlines")) == "two\nlines"
    assert shown(record("optuna", "one line")) == "one line"


def test_the_essence_of_a_remote_traceback_is_its_error():
    text = (
        'task failed\nTraceback (most recent call last):\n  File "a.py", line 1, in f\n    f()\nValueError: no such label\n'
    )
    assert essence(text) == "ValueError: no such label"
    assert essence("") == ""


def test_a_logger_that_wrote_by_itself_writes_as_all_others(caplog):
    logger = logging.getLogger("made.for.this.test")
    logger.addHandler(logging.StreamHandler())
    logger.propagate = False
    take_over(logger.name)
    logger.error("heard")
    assert "heard" in caplog.text
    assert not logger.handlers


def test_options_are_named_as_the_job_calls_them():
    line = OneLine("%(message)s", {"image.size": "size", "source.columns": "columns"}).format
    said = logging.makeLogRecord({"name": "raymed", "msg": "--image.size, or --source.columns.label; --image.sizes."})
    assert line(said) == "--size, or --columns.label; --image.sizes."
