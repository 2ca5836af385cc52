"""A temporary folder without room for a checkpoint is found before anything is trained; a real one of 8 MB."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from safetensors import SafetensorError
from torch import nn

from raymed.errors import StorageError
from raymed.storage.folder import Folder
from raymed.training.saving import Saving
from raymed.training.staging import staging_bytes

IN_SMALL_FOLDER = """
import sys
from torch import nn
from raymed.data.labels import LabelTable
from raymed.doctor import checks
from raymed.errors import StorageError
from raymed.models.settings import ModelSettings
from raymed.training.staging import check_room, staging_bytes
check_room(staging_bytes(nn.Linear(256, 256)))
try:
    check_room(staging_bytes(nn.Linear(1024, 1024)))
except StorageError as error:
    print("run:", error)
for finding in checks.model(ModelSettings(preset="resnet18"), LabelTable.open("lung"), 56):
    print(finding.state, finding.subject, finding.text)
"""


def test_a_checkpoint_is_counted_by_who_writes_what() -> None:
    module = nn.Sequential(nn.Linear(100, 10, bias=False), nn.Linear(10, 10, bias=False))
    assert staging_bytes(module) == 20 * 1100
    module[0].weight.requires_grad = False
    assert staging_bytes(module) == 8 * 1100 + 12 * 100
    module[0].bfloat16()
    assert staging_bytes(module) == 4 * 1000 + 8 * 100 + 12 * 100, "a large frozen part is not in float32"
    assert staging_bytes(module, share=0.5) == 4 * 1000 + 8 * 100 + 6 * 100
    assert staging_bytes(module, share=0.5, has_first=False) == 6 * 100


@pytest.mark.slow
def test_a_temporary_folder_in_memory_is_too_small_before_training_and_not_at_the_first_checkpoint(tmp_path: Path) -> None:
    inside = ["unshare", "--map-root-user", "--mount", "bash", "-ec"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*inside, "mount -t tmpfs tmpfs /mnt"], capture_output=True).returncode
    ):
        pytest.skip("this system lets nobody mount a folder of their own")
    script = f"mount -t tmpfs -o size=8m tmpfs {tmp_path}; TMPDIR={tmp_path} exec {sys.executable} -c '{IN_SMALL_FOLDER}'"
    done = subprocess.run([*inside, script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    run, model, checkpoints = done.stdout.splitlines()
    for line in (run, checkpoints):
        assert f"{tmp_path}, which lies in memory, has 0.01 GiB free" in line and "TMPDIR" in line
    assert "takes 0.02 GiB" in run and "takes 0.2" in checkpoints
    assert model.startswith("ok model") and checkpoints.startswith("wrong checkpoints")


def test_a_checkpoint_for_which_other_runs_left_no_room_says_so_and_what_to_do(tmp_path, monkeypatch):
    """torch's own words are of an inline_container; the run would be started again, from the beginning perhaps."""

    of_torch = RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
    of_safetensors = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    met = [of_torch]

    def refused() -> None:
        raise met[0]

    engine = SimpleNamespace(worker=0, workers=1, save=lambda folder: refused)
    agreement = SimpleNamespace(attempt=lambda do: do(), reach=lambda do: do(), may_wait=lambda: None)
    monkeypatch.setattr(dist, "broadcast_object_list", lambda names: None)
    full = (StorageError, "is full: .* TMPDIR")
    for free, met[0], error, words in (
        (0, of_torch, *full),
        (2**30, of_torch, RuntimeError, "inline_container"),
        (2**30, of_safetensors, *full),  # it has removed by then what it had written
        (2**30, SafetensorError("InvalidHeader"), SafetensorError, "InvalidHeader"),
    ):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        saving = Saving(engine, Folder.at(tmp_path / "run"), agreement)
        (tmp_path / "run").mkdir(exist_ok=True)
        saving.begin(8, 0, usable=False)
        with pytest.raises(error, match=words):
            saving.complete()
