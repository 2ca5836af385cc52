"""Folders by the addresses that people type."""

import os
from pathlib import Path

import pytest

from raymed.errors import UserError
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
