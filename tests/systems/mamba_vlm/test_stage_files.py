import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import script
from report_data import write_reports

from raymed.data.image import ImageSettings
from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.job.job import parse
from raymed.systems.mamba_vlm.bridge_recipe import BridgeRecipe
from raymed.systems.mamba_vlm.file_names import STAGE_2_BEST, STAGE_2_CONFIG, STAGE_2_FINAL, STAGE_2_LOG
from raymed.systems.mamba_vlm.guide_files import write_checkpoint
from raymed.systems.mamba_vlm.loss_log import LossLog
from raymed.systems.mamba_vlm.options import GUIDE, TrainVlm
from raymed.systems.mamba_vlm.output import StageFiles, _write, collapse, means_of_epochs
from raymed.systems.mamba_vlm.recipe import ReportRecipe
from raymed.systems.mamba_vlm.slices import Reading
from raymed.training.checkpoint import Progress, new_name, publish
from raymed.training.loop import MODEL, SAVED
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.training.state import TrainingState, write_state
from raymed.training.step_log import STEPS, TOTAL_STEPS
from raymed.tuning.budget import Budget

RECIPE = ReportRecipe(Reading(ImageSettings(size=32)))
SPEC = RunSpec(name="first", storage="runs", data="data", recipe=RECIPE, train=TrainSettings(epochs=2))


def tell(log: LossLog, steps: range, loss: float) -> None:
    rows = [{"global_step": step, "train_loss": loss} for step in steps]
    log.watch(SPEC, STEPS, {STEPS: rows, TOTAL_STEPS: 4})


def lines(folder: Path) -> list[str]:
    return (folder / STAGE_2_LOG).read_text().splitlines()


def test_a_log_is_gone_on_with_and_never_wiped(tmp_path: Path) -> None:
    tell(LossLog(tmp_path, SPEC), range(1, 5), 3.0)
    assert lines(tmp_path) == [
        "step,epoch,caption_loss",
        *(f"{n},{e},3.000000" for n, e in ((1, 1), (2, 1), (3, 2), (4, 2))),
    ]
    tell(LossLog(tmp_path, replace(SPEC, name="second")), range(1, 3), 2.0)
    assert lines(tmp_path)[4:] == ["4,2,3.000000", "5,3,2.000000", "6,3,2.000000"]
    assert json.loads((tmp_path / STAGE_2_CONFIG).read_text())["run"] == "second"


def test_a_log_that_excel_saved_is_gone_on_with_and_a_damaged_one_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / STAGE_2_LOG).write_text("step,epoch,caption_loss\n1,1,3.5\n", "utf-8-sig")
    tell(LossLog(tmp_path, SPEC), range(1, 2), 2.0)
    assert lines(tmp_path)[1:] == ["1,1,3.500000", "2,2,2.000000"]
    (tmp_path / STAGE_2_LOG).write_text("step;epoch;caption_loss\n1;1;3.5\n")
    with pytest.raises(UserError, match="move it away"):
        LossLog(tmp_path, SPEC)
    assert lines(tmp_path)[1] == "1;1;3.5"


def test_every_epochs_mean_is_told_while_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = LossLog(tmp_path, SPEC)
    with caplog.at_level("INFO", "raymed"):
        tell(log, range(1, 3), 3.0)
        log.watch(SPEC, "epoch", {"epoch": 1, "train_loss": 2.5})
    assert "epoch 1 平均 caption_loss 2.5000" in caplog.text


def test_steps_that_an_interrupted_run_does_again_are_there_once(tmp_path: Path) -> None:
    tell(LossLog(tmp_path, SPEC), range(1, 4), 3.0)
    tell(LossLog(tmp_path, SPEC), range(2, 5), 2.5)  # it went on from its checkpoint of step 1
    assert lines(tmp_path)[1:] == ["1,1,3.000000", "2,1,2.500000", "3,2,2.500000", "4,2,2.500000"]


def test_the_settings_that_a_check_needs_are_written_when_training_begins(tmp_path: Path) -> None:
    LossLog(tmp_path, SPEC)
    config = json.loads((tmp_path / STAGE_2_CONFIG).read_text())
    assert (config["max_visual_tokens"], config["mamba_model"], config["epochs"]) == (96, None, 2)


OF_A_FOLDER = ("--vision.preset", "tiny", "--vision.target_side", "4", "--llm.path", "null", "--storage", "runs")


def typed(prepared: Prepared, *words: str) -> tuple[TrainVlm, RunSpec]:
    """A command, and its run by its name."""
    words = ("--data", prepared.folder.uri, *OF_A_FOLDER, *words)
    options = parse(TrainVlm, list(words), aliases=GUIDE, script=script("train_vlm"))
    return options, options.open_search(prepared, Budget(trials=1)).template


def test_a_run_that_did_not_end_is_gone_on_with_by_its_own_command_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another command began with what the unfinished run had begun with, and replaced what stage 2 had learned."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "raymed")
    prepared, last = write_reports(tmp_path / "data"), tmp_path / "outputs" / STAGE_2_FINAL
    _, first = typed(prepared, "--epochs", "2")
    assert first.recipe.start is None and "begin with random weights" in caplog.text
    LossLog(tmp_path / "outputs", first)
    write_checkpoint(last, first.recipe.build().state_dict(), 1, language=True, settings=first.recipe.settings())
    _, same = typed(prepared, "--epochs", "2")
    assert (same.name, same.recipe.start) == (first.name, None) and f"{first.name} did not end" in caplog.text
    for words in (("--epochs", "20", "--lr", "2e-5"), ("--epochs", "2", "--max_visual_tokens", "4")):
        caplog.clear()
        _, other = typed(prepared, *words)
        assert other.name != first.name and other.recipe.start is not None
        assert f"begins with {last}" in caplog.text
    LossLog(tmp_path / "outputs", other)
    options, again = typed(prepared, *words)
    assert (again.name, again.recipe.start) == (other.name, other.recipe.start), "its own start, a copy of the file"
    LossLog(tmp_path / "outputs", other).finish()
    caplog.clear()
    typed(prepared, *words)
    assert options.first_weights() == last and "did not end" not in caplog.text


def checkpoint(spec: RunSpec, name: str, progress: Progress) -> None:
    folder = Path(spec.folder.path) / name
    folder.mkdir(parents=True)
    weight = {"bridge.proj.weight": torch.full((2, 2), float(progress.global_step))}
    progress.write(folder)
    write_state(folder, TrainingState(weight, weight, weight, {}, progress.global_step, {}))


def test_files_of_the_guide_are_there_while_a_run_trains(tmp_path: Path) -> None:
    spec = replace(SPEC, storage=str(tmp_path / "runs"))
    files, out = StageFiles(tmp_path, spec), tmp_path
    checkpoint(spec, "step-1", Progress(global_step=1))
    between = {"epoch": 0, "global_step": 1, SAVED: "step-1", STEPS: [], TOTAL_STEPS: 4}
    files.watch(spec, STEPS, between)
    step = torch.load(out / "vision_bridge_step1.pt", weights_only=True)
    assert set(step) == {"step", "model_state_dict", "settings", "data", "optimizer_state_dict"}
    checkpoint(spec, "step-2", Progress(global_step=2, history=[{"val_loss": 1.0}]))
    epoch = {"epoch": 1, "global_step": 2, "val_loss": 1.0, "train_loss": 1.0, "finished": 0.0, SAVED: "step-2", STEPS: []}
    epoch[TOTAL_STEPS] = 4
    files.watch(spec, STEPS, epoch)
    assert not (out / "vision_bridge_step2.pt").exists()
    files.watch(spec, "epoch", epoch | {MODEL: spec.folder.child("step-2").uri})
    checkpoint(spec, "step-4", Progress(global_step=4, history=[{"val_loss": 1.0}, {"val_loss": 2.0}]))
    worse = epoch | {"epoch": 2, "global_step": 4, SAVED: "step-4", MODEL: spec.folder.child("step-2").uri}
    files.watch(spec, "epoch", worse)
    best, last = (torch.load(out / name, weights_only=True) for name in (STAGE_2_BEST, STAGE_2_FINAL))
    assert (best["step"], last["step"], last["optimizer_state_dict"]["step"]) == (2, 4, 4)
    assert "epoch 2  global_step 4" in (out / "stage2_heartbeat.txt").read_text()
    files.watch(spec, "epoch", worse | {SAVED: "step-9"})  # removed meanwhile: the run must go on
    assert torch.load(out / STAGE_2_FINAL, weights_only=True)["step"] == 4


def test_an_epoch_without_validation_is_an_epoch_too(tmp_path: Path) -> None:
    """Where all patients are trained on: the job ended after its first epoch, which was taken for a step, besides."""
    spec = replace(SPEC, storage=str(tmp_path / "runs"))
    files = StageFiles(tmp_path, spec)
    checkpoint(spec, "step-2", Progress(global_step=2, history=[{"train_loss": 1.0}]))
    epoch = {"epoch": 1, "global_step": 2, "train_loss": 1.0, "finished": 0.0, SAVED: "step-2", STEPS: [], TOTAL_STEPS: 4}
    files.watch(spec, STEPS, epoch)
    assert not (tmp_path / "vision_bridge_step2.pt").exists()
    files.watch(spec, "epoch", epoch)
    assert "val_loss" not in torch.load(tmp_path / STAGE_2_FINAL, weights_only=True)


def test_the_last_five_epochs_are_averaged_as_the_guide_has_it() -> None:
    lines = means_of_epochs([{"train_loss": float(loss)} for loss in (9, 8, 5, 4, 3, 2, 1)])
    assert lines[0] == "epoch 1 平均 caption_loss 9.0000" and len(lines) == 8
    assert lines[-1] == "最近 5 个 epoch 平均 caption_loss 3.0000"


def test_epochs_of_a_run_that_goes_on_are_counted_on_and_the_last_five_are_of_all_runs(tmp_path: Path) -> None:
    log = LossLog(tmp_path, SPEC)
    tell(log, range(1, 3), 4.0)
    tell(log, range(3, 5), 3.0)
    following = replace(SPEC, name="second", storage=str(tmp_path / "runs"))
    files = StageFiles(tmp_path, following)
    checkpoint(following, "own", Progress(global_step=4, history=[{"train_loss": 2.0}, {"train_loss": 1.0}]))
    name = new_name(4, 0)
    publish(Path(following.folder.path) / "own", following.folder, name)
    said = files.finish(following, following.folder.child(name).uri)
    assert said[:2] == ["epoch 3 平均 caption_loss 2.0000", "epoch 4 平均 caption_loss 1.0000"]
    assert said[2] == "最近 4 个 epoch 平均 caption_loss 2.5000"


def test_stage_1_tells_its_first_and_every_tenth_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "raymed")
    spec = replace(SPEC, recipe=BridgeRecipe(RECIPE.reading))
    rows = [{"global_step": step, "train_loss": step / 8} for step in range(1, 21)]
    StageFiles(tmp_path, spec).watch(spec, STEPS, {STEPS: rows, TOTAL_STEPS: 40})
    told = ["step 1  train_loss 0.1250", "step 10  train_loss 1.2500", "step 20  train_loss 2.5000"]
    assert [record.getMessage() for record in caplog.records] == told


def test_tokens_that_have_collapsed_are_told_and_others_are_not() -> None:
    [warning] = collapse({"train_energy": 5e-5, "train_token_std": 1e-3})
    assert "collapsed" in warning and "--from_scratch" in warning
    assert not collapse({"train_energy": 0.5, "train_token_std": 0.7})


def test_the_file_that_training_continues_has_what_the_optimizer_goes_on_from(tmp_path: Path) -> None:
    weight = {"bridge.proj.weight": torch.ones(2, 2)}
    Progress(global_step=3, history=[{"val_loss": 1.0}]).write(tmp_path)
    write_state(tmp_path, TrainingState(weight, weight, weight, {}, 3, {}))
    _write(tmp_path, tmp_path / "first.pt", SPEC, continued=True)
    following = replace(SPEC, recipe=replace(RECIPE, start=str(tmp_path / "first.pt")))
    _write(tmp_path, tmp_path / "second.pt", following, continued=True)
    first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("first.pt", "second.pt"))
    assert first["optimizer_state_dict"]["step"] == 3 and second["optimizer_state_dict"]["step"] == 6
    assert torch.equal(second["optimizer_state_dict"]["exp_avg"]["bridge.proj.weight"], torch.ones(2, 2))
    assert second["data"] == "data" and second["settings"]["recipe"] == "mamba_vlm"
