"""Report writers judged: what is swapped, generated and compared, on a tiny network and records made here."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import script
from report_data import write_reports

from raymed.data.image import ImageSettings
from raymed.data.labels import LabelTable
from raymed.data.phantom import PhantomSettings
from raymed.data.record import Image, Message, Record
from raymed.errors import UserError
from raymed.evaluation.findings import Findings
from raymed.storage.folder import Folder
from raymed.systems.mamba_vlm.evaluation import Writer, caption_losses, evaluate_writer
from raymed.systems.mamba_vlm.guide_files import write_checkpoint
from raymed.systems.mamba_vlm.options import TrainVlm
from raymed.systems.mamba_vlm.phantoms import SETTINGS, prepare_phantom_reports
from raymed.systems.mamba_vlm.recipe import ReportRecipe
from raymed.systems.mamba_vlm.settings import BridgeSettings, GenerationSettings, VisionSettings
from raymed.systems.mamba_vlm.slices import Reading

SIZE = 32


def writer(kind: str = "mamba") -> Writer:
    vision = VisionSettings(preset="tiny", output_stage=2, target_side=4)
    recipe = ReportRecipe(
        Reading(ImageSettings(size=SIZE)), vision=vision, bridge=BridgeSettings(kind=kind, max_visual_tokens=16)
    )
    torch.manual_seed(0)
    return Writer(recipe, recipe.build().eval())


def record(number: int, answer: str = "Clear.") -> Record:
    pixels = np.random.default_rng(number).integers(0, 255, (SIZE, SIZE, 1), dtype=np.uint8)
    messages = (Message("human", "What is seen?"), Message("gpt", answer))
    name = f"P{number}"
    return Record(name, name, name, 0, None, "made", (Image("input", 0, pixels),), messages)


def test_the_loss_is_of_each_report_and_does_not_depend_on_what_else_is_in_the_batch() -> None:
    records = [record(0), record(1, "A much longer report about the left lung."), record(2)]
    together, alone = (caption_losses(writer(), iter(batches)) for batches in ([records], [[each] for each in records]))
    assert together.patients.tolist() == ["P0", "P1", "P2"]
    assert np.array_equal(together.tokens, alone.tokens)
    np.testing.assert_allclose(together.nll, alone.nll, rtol=1e-4)


def test_another_picture_gives_another_loss_and_the_same_one_the_same() -> None:
    own, other = record(0), replace(record(1), messages=record(0).messages)
    losses = caption_losses(writer(), iter([[own, own, other]]))
    assert losses.nll[0] == pytest.approx(losses.nll[1]) and losses.nll[0] != pytest.approx(losses.nll[2], rel=1e-9)


def test_a_checkpoint_file_of_stage_2_is_opened_as_what_was_trained_and_one_of_stage_1_is_refused(tmp_path: Path) -> None:
    trained = writer()
    settings, path = trained.recipe.settings(), tmp_path / "vision_bridge_vlm_best_val.pt"
    write_checkpoint(path, trained.network.state_dict(), 7, language=True, val_loss=1.0, settings=settings)
    again = Writer.open(str(path), f"sqlite:///{tmp_path}/mlflow.db")
    losses = [caption_losses(each, iter([[record(0)]])).nll[0] for each in (trained, again)]
    assert losses[0] == pytest.approx(losses[1])
    write_checkpoint(path, trained.network.state_dict(), 7, settings=settings | {"recipe": "mamba_vlm-bridge"})
    with pytest.raises(UserError, match="no file of stage 2"):
        Writer.open(str(path), f"sqlite:///{tmp_path}/mlflow.db")


@pytest.mark.parametrize(("patients", "split"), [(8, "test"), (7, "val")])
def test_a_file_is_judged_on_its_own_data_and_on_validation_where_nobody_is_left_for_a_test(
    tmp_path: Path, patients: int, split: str
) -> None:
    """The command that training prints ended for the guide's two files: "has no test patients"."""
    prepared, trained = write_reports(tmp_path / "data", patients), writer()
    path, settings = tmp_path / "vision_bridge_vlm_best_val.pt", trained.recipe.settings()
    state = trained.network.state_dict()
    write_checkpoint(path, state, 7, language=True, settings=settings, data=prepared.folder.uri)
    job = script("evaluate_vlm")
    told = job.main(job.EvaluateVlm(model=str(path), dry_run=True, storage=str(tmp_path / "runs")))
    assert told.text.endswith(f"on 1 {split} reports of {prepared.folder.uri}")
    advice = TrainVlm(output_dir=str(tmp_path)).advice(prepared)
    assert f"--data {prepared.folder.uri} --split {split} --out judged" in advice


def test_a_model_that_is_not_there_is_told_before_phantoms_are_made(tmp_path: Path) -> None:
    job = script("evaluate_vlm")
    with pytest.raises(UserError, match="is not a model"):
        job.main(job.EvaluateVlm(model=str(tmp_path), storage=str(tmp_path / "runs")))
    assert not list(tmp_path.glob("runs/phantom-reports-*"))


def test_nobody_is_judged_where_all_patients_are_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Writer, "open", lambda name, tracking: writer())
    prepared = write_reports(tmp_path / "data", patients=6)
    assert "evaluate_vlm" not in TrainVlm().advice(prepared)
    job = script("evaluate_vlm")
    with pytest.raises(UserError, match="has no val patients"):
        job.main(job.EvaluateVlm(model="NONE", data=prepared.folder.uri))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_model_that_was_not_trained_fails_its_guards_and_is_told_so(tmp_path) -> None:
    phantom = PhantomSettings(patients=24, size=32, slices=(4, 4), difficulty=0.1)
    prepared = prepare_phantom_reports(Folder.at(tmp_path), phantom, replace(SETTINGS, image=ImageSettings(size=SIZE)))
    findings, generation = Findings(LabelTable.open("chest_findings")), GenerationSettings(max_new_tokens=8)
    rows = prepared.rows("all")
    result = evaluate_writer(writer(), prepared, rows, findings, generation, 8, simple=writer("linear"))
    assert [guard.name for guard in result.guards] == ["image shuffle", "commonest report", "linear bridge"]
    assert not result.passed and result.lines[0].startswith(("FAILED", "passed"))
    assert not result.guards[1].passed, result.guards[1].words
    assert len(result.texts) == 24 and set(result.texts["patient_id"]) == {f"phantom_{n:04d}" for n in range(24)}
    assert result.to_dict()["variety"]["distinct_references"] > 0.3 * 24
