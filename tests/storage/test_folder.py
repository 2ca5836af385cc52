"""Folders by the addresses that people type."""

import os
from pathlib import Path

import pytest

from raymed.errors import UserError
from raymed.storage import folder
from raymed.storage.folder import Folder, require_other


@pytest.mark.skipif(os.name == "nt", reason="drives are what they are there")
@pytest.mark.parametrize("typed", [r"D:\PREPARED\new", "d:/PREPARED/new", r"D:\\PREPARED\new", r"D:\PREPARED\old\..\new"])
def test_a_folder_on_a_drive_is_where_linux_mounts_it_and_not_in_the_working_folder(typed: str) -> None:
    assert Folder.at(typed).path == Folder.at(typed).uri == "/mnt/d/PREPARED/new"


def test_other_addresses_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Folder.at("ab:c").path == str(tmp_path / "ab:c") and Folder.at("a").path == str(tmp_path / "a")


def test_an_address_without_a_bucket_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match="names no bucket or folder"):
        Folder.at("s3://")


@pytest.fixture
def _amazon(monkeypatch: pytest.MonkeyPatch) -> None:
    """No endpoint is named, and time goes by at once."""
    for name in folder.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    now = [0.0]
    monkeypatch.setattr("raymed.clock.seconds", lambda: now[0])
    monkeypatch.setattr("raymed.clock.sleep", lambda duration: now.append(now.pop() + duration))
    folder._region.cache_clear()


@pytest.mark.usefixtures("_amazon")
def test_a_buckets_region_is_asked_once_and_again_where_there_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow asked over the network whenever an address was opened; one second without an answer failed a trial."""
    asked, away = list[str](), [OSError("When resolving region: NETWORK_CONNECTION")] * 5

    def region(bucket: str) -> str:
        asked.append(bucket)
        if away:
            raise away.pop()
        return "eu-central-1"

    monkeypatch.setattr("pyarrow.fs.resolve_s3_region", region)
    opened = [Folder.at("s3://far-away/runs"), Folder.at("s3://far-away/runs").child("a"), Folder.at("s3://far-away/data")]
    assert asked == ["far-away"] * 6 and opened[1].path == "far-away/runs/a"
    assert [each.filesystem.region for each in opened] == ["eu-central-1"] * 3
    assert opened[0].uri == "s3://far-away/runs", "its name stays what was typed"
    Folder.at("s3://another/runs?region=us-east-2")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    Folder.at("s3://a-third/runs")
    assert len(asked) == 6, "who says where it is is not asked"


@pytest.mark.usefixtures("_amazon")
def test_a_bucket_that_is_not_there_is_told_at_once_and_no_answer_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = list[str]()

    def region(bucket: str) -> str:
        tries.append(bucket)
        raise OSError("Bucket 'mistyped' not found" if bucket == "mistyped" else "no answer")

    monkeypatch.setattr("pyarrow.fs.resolve_s3_region", region)
    with pytest.raises(UserError, match=r"no bucket 'mistyped'.*or name its region"):
        Folder.at("s3://mistyped/runs")
    with pytest.raises(OSError, match="no answer"):
        Folder.at("s3://silent/runs")
    assert tries == ["mistyped"] + ["silent"] * 61


def test_a_result_never_replaces_what_it_is_made_from(tmp_path: Path) -> None:
    (tmp_path / "list.csv").touch()
    (tmp_path / "link.csv").symlink_to(tmp_path / "list.csv")
    (tmp_path / "hard.csv").hardlink_to(tmp_path / "list.csv")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for none in ("models:/raymed-lung@champion", "", "~nobody/x", "a\0b", tmp_path / "circle", tmp_path / "list.csv"):
        require_other(tmp_path / "out.csv", none)
        require_other(tmp_path / "circle", none)
    for same in ("list.csv", "link.csv", "hard.csv"):
        with pytest.raises(UserError, match="would be lost"):
            require_other(tmp_path / same, "", tmp_path / "list.csv")
