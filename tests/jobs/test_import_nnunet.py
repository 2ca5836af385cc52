import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import job
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "systems" / "mamba_vlm"))

from nnunet_files import write_checkpoint

pytestmark = pytest.mark.slow


def imported(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return job("import_nnunet", folder, *words)


def test_the_job_writes_all_weights_and_says_how_many(tmp_path: Path) -> None:
    encoder = write_checkpoint(tmp_path / "checkpoint_best.pth", "residual")
    dry = imported(tmp_path, str(tmp_path / "checkpoint_best.pth"), "--out", str(tmp_path / "encoder"), "--dry-run")
    assert dry.returncode == 0 and not (tmp_path / "encoder").exists(), dry.stderr
    result = imported(tmp_path, str(tmp_path / "checkpoint_best.pth"), "--out", str(tmp_path / "encoder"))
    count = len(encoder.state_dict())
    assert f"{count} of {count} weights matched, 0 missing" in result.stdout, result.stderr
    written = load_file(tmp_path / "encoder" / "encoder.safetensors")
    assert all(torch.equal(written[key], tensor) for key, tensor in encoder.state_dict().items())


def test_a_checkpoint_that_is_not_there_is_told_without_a_traceback(tmp_path: Path) -> None:
    result = imported(tmp_path, str(tmp_path / "missing.pth"))
    assert result.returncode == 2 and "there is no checkpoint" in result.stderr and "Traceback" not in result.stderr


def test_a_checkpoint_on_a_drive_is_looked_for_where_linux_mounts_it(tmp_path: Path) -> None:
    assert "/mnt/d/nnunet_results/best.pth" in imported(tmp_path, r"D:\nnunet_results\best.pth").stderr
