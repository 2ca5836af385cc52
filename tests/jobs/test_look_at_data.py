"""Looking at data, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import done

from raymed.data.prepared import Prepared


@pytest.mark.slow
def test_the_page_lands_in_the_storage_and_the_last_line_says_where(prepared: Prepared, tmp_path: Path) -> None:
    said = json.loads(done("look_at_data", tmp_path, prepared.folder.path, "--json"))
    page = Path(said["out"])
    assert page.parent == tmp_path / "runs" and page.name == f"data-{prepared.digest[:8]}.html"
    assert page.read_text("utf-8").count("<img") > 4
    assert page.stat().st_mode & 0o077 == 0, "it shows patients"
