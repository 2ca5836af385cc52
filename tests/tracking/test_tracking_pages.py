"""A person picks a trial on MLflow's pages: what a browser shows there, and the clicks that lead to a model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from ports import free_port

from raymed.registry.logged_model import log_model, name_version
from raymed.tracking.tracker import Tracker
from raymed.tracking.view import BEST, where_to_look

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """A search of three trials, the last of which won and is registered."""
    folder = tmp_path_factory.mktemp("search")
    tracker = Tracker.open(f"sqlite:///{folder}/mlflow.db", "raymed-lung")
    search = tracker.run("search", "search")
    for number in range(3):
        run = tracker.run(f"search/trial-{number}", f"trial-{number:04d}", search, params={"train": {"lr": 0.1**number}})
        tracker.input(run, "search", "0123abcd", "/prepared", "training")
        for epoch in (1, 2):
            tracker.history.log_validation(run, epoch, {"val_loss": 0.75 / (number + 1)})
        tracker.metrics(run, {BEST: 0.75 / (number + 1)})
        tracker.finish(run, "FINISHED")
    (folder / "network").mkdir()
    (folder / "network" / "weights").write_text("weights")
    logged = log_model(tracker, run, folder / "network", "0123", "raymed-lung", {"test_loss": 0.2625})
    tracker.client.create_registered_model("raymed-lung")
    version = tracker.client.create_model_version("raymed-lung", logged.uri, run)
    name_version(tracker, run, "0123", "raymed-lung", str(version.version))
    tracker.describe_as(search, "**Trial 2 won** of 3. Report: `report.html`.")
    tracker.finish(search, "FINISHED")
    return tracker


@pytest.fixture(scope="module")
def server(tracker: Tracker) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(
        [*command, "--backend-store-uri", tracker.uri],
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def test_a_person_is_led_to_the_trials_by_server_or_by_the_command_that_starts_one() -> None:
    assert where_to_look("http://host:5000/", "7").startswith("look at it: http://host:5000/#/experiments/7/runs?")
    command, page = where_to_look("sqlite:////runs/mlflow.db", "7").split("\n")
    assert command == "look at it: mlflow ui --backend-store-uri sqlite:////runs/mlflow.db"
    assert "http://127.0.0.1:5000/#/experiments/7/runs?workflowType=machine_learning" in page


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs chromium")
def test_trials_are_sorted_compared_and_followed_to_the_model_in_a_few_clicks(tracker: Tracker, server: str) -> None:
    from playwright.sync_api import expect, sync_playwright

    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        page.goto(where_to_look(server, tracker.experiment_id).removeprefix("look at it: "))
        expect(page.get_by_role("columnheader", name=BEST).first).to_be_visible()
        shown = re.findall(r"trial-000\d", page.inner_text("body"))
        assert shown == ["trial-0002", "trial-0001", "trial-0000"], "all trials, the best first"
        expect(page.get_by_text("v1", exact=True).first).to_be_visible()
        for name in ("trial-0002", "trial-0001"):
            page.get_by_role("row").filter(has_text=name).get_by_role("checkbox").first.check()
        page.get_by_role("button", name="Compare").click()
        expect(page.get_by_text("Comparing 2 Runs")).to_be_visible()
        page.goto(
            f"{server}/#/experiments/{tracker.experiment_id}/runs/{tracker.find('search')}?workflowType=machine_learning"
        )
        for text in ("Trial 2 won", "Logged models (1)", "raymed-lung-0123", "trial-0000"):
            expect(page.get_by_text(text).first).to_be_visible()
        page.get_by_role("link", name=re.compile("raymed-lung-0123")).first.click()
        expect(page.get_by_text("test_loss").first).to_be_visible()
        browser.close()
