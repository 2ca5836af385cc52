"""The promises of docs/security.md that no other test holds."""

from __future__ import annotations

import ast
import json
import logging
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_prepared
from PIL import Image
from sentences import nodes_of

from raymed.data.image import ImageSettings
from raymed.data.prepare import PrepareSettings, prepare
from raymed.data.prepared import MANIFEST, Prepared, digest_of
from raymed.data.split import SplitSettings
from raymed.errors import UserError
from raymed.models.settings import ModelSettings
from raymed.storage.folder import Folder, refuse_password
from raymed.systems.lung.recipe import LungRecipe
from raymed.tracking.tracker import Tracker
from raymed.training.engine import TrainSettings
from raymed.training.spec import RunSpec
from raymed.tuning.budget import Budget
from raymed.tuning.execution import run_search
from raymed.tuning.result import conclude_search
from raymed.tuning.search import Search
from raymed.tuning.settings import SearchSettings

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "raymed").rglob("*.py"), *(ROOT / "jobs").glob("*.py")])
# calls that run code from a file, or leave a shell to read text
FORBIDDEN = {"eval", "exec", "os.system", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "joblib.load"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_runs_what_stands_in_a_file(path: Path) -> None:
    nodes = nodes_of(path)
    # a file that its owner vouches for on the command line, with --trust
    vouched = [node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test) == "trust"]
    trusted = [node for branch in vouched for line in branch.body for node in ast.walk(line)]
    for call in (node for node in nodes if isinstance(node, ast.Call)):
        name, where = ast.unparse(call.func), f"{path}:{call.lineno}"
        options = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert name not in FORBIDDEN, where
        assert options.get("shell") != "True" and options.get("trust_remote_code") != "True", where
        assert options.get("allow_pickle") != "True", where
        assert name != "torch.load" or options.get("weights_only") == "True" or call in trusted, where


@pytest.mark.parametrize(
    "uri",
    [
        "s3://KEY:SECRET@bucket/raymed",
        "http://me:SECRET@server:5000",
        "postgresql://u:SECRET@db/x",
        "postgresql://u:SECRET/with/slashes@db/x",
    ],
)
def test_an_address_with_a_password_is_refused_and_not_repeated(uri: str) -> None:
    for use in (Folder.at, lambda address: Tracker.open(address, "x")):
        with pytest.raises(UserError, match="recorded") as refused:
            use(uri)
        assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize("uri", ["s3://bucket/a@b", "http://server:5000/a@b", "http://server:5000"])
def test_an_address_without_a_password_is_taken(uri: str) -> None:
    refuse_password(uri)


def test_prepared_data_that_name_files_elsewhere_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_prepared(folder, patients=8, slices=1)
    manifest = json.loads((folder / MANIFEST).read_text())
    index = pq.read_table(folder / "index.parquet")
    names = pa.array(["../../elsewhere.parquet"] * index.num_rows)
    pq.write_table(index.set_column(index.schema.get_field_index("shard"), "shard", names), folder / "index.parquet")
    manifest["index_digest"] = digest_of((folder / "index.parquet").read_bytes())
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="outside of the folder"):
        Prepared.open(str(folder))
    (folder / MANIFEST).write_text(json.dumps(manifest | {"index": "../data/index.parquet"}))
    with pytest.raises(UserError, match="not a path inside"):
        Prepared.open(str(folder))


@pytest.mark.slow
def test_ray_asks_for_its_token_which_others_cannot_read(cluster: None) -> None:
    from ray._raylet import AuthenticationMode, get_authentication_mode

    assert get_authentication_mode() == AuthenticationMode.TOKEN
    token = Path.home() / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_no_name_of_a_patient_leaves_the_owner_in_data_runs_reports_or_logs(
    cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    names = [f"Mueller-{number:02d}-born1970" for number in range(16)]
    draw = np.random.default_rng(0)
    for number, name in enumerate(names):
        place = tmp_path / "owner" / "in" / ("normal", "bacterial", "viral", "pneumocystis")[number % 4] / name
        place.mkdir(parents=True)
        for position in range(2):
            Image.fromarray(draw.integers(0, 255, (32, 32), np.uint8)).save(place / f"{name}-{position}.png")
    (place / f"{name}-2.png").write_bytes(b"no picture")
    (place / f"{name}.txt").write_text("a note on the source names it")
    key = tmp_path / "owner" / "key"
    settings = PrepareSettings(
        image=ImageSettings(size=32), split=SplitSettings(folds=0), max_quarantine="20%", pseudonymise=str(key)
    )
    storage = tmp_path / "runs"
    prepared = prepare(tmp_path / "owner" / "in", f"{storage}/prepared", settings).prepared
    recipe = LungRecipe.for_data(prepared.labels, prepared.size, ModelSettings(preset="tiny"))
    template = RunSpec("search", str(storage), prepared.folder.uri, recipe, TrainSettings(epochs=1, global_batch=8))
    search = Search(template, SearchSettings(), Budget(trials=1), f"sqlite:///{storage}/mlflow.db")
    outcome = conclude_search(search, run_search(search))
    report = (storage / "search" / "report.html").read_text()
    assert "patient-" in report and "patient-" in (storage / "search" / "patients.csv").read_text()
    said = capfd.readouterr()
    spoken = caplog.text + said.out + said.err + outcome.text + json.dumps(outcome.data)
    secrets = ["Mueller", "born1970", key.read_text().strip()]
    assert [secret for secret in secrets if secret in spoken] == []
    database = sqlite3.connect(storage / "mlflow.db")
    assert [secret for secret in secrets if any(secret in line for line in database.iterdump())] == []
    for path in (path for path in storage.rglob("*") if path.is_file()):
        content = str(path).encode() + path.read_bytes()
        if path.suffix == ".parquet":
            content += repr(pq.read_table(path).to_pylist()).encode()
        assert [secret for secret in secrets if secret.encode() in content] == [], path
