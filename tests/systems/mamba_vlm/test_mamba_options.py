from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import script

from raymed.data.image import ImageSettings
from raymed.errors import UserError
from raymed.job.job import parse
from raymed.systems.mamba_vlm.check import CHECK_GUIDE, CheckOptions, settled
from raymed.systems.mamba_vlm.guide_files import GuideCheckpoint
from raymed.systems.mamba_vlm.options import GUIDE, TrainBridge, TrainVlm, small_without_data
from raymed.systems.mamba_vlm.recipe import ReportRecipe
from raymed.systems.mamba_vlm.settings import BridgeSettings
from raymed.systems.mamba_vlm.slices import Reading


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def given(*words: str) -> TrainVlm:
    return parse(TrainVlm, list(words), aliases=GUIDE, script=script("train_vlm"))


def test_the_guides_commands_say_here_what_they_say_there() -> None:
    words = "--epochs 20 --batch_size 1 --lr 2e-5 --max_visual_tokens 96 --mamba_model mamba-130m-hf --use_cmi --roi_side 7"
    options = given(*words.split())
    assert (options.train.epochs, options.train.global_batch, options.train.micro_batch, options.train.lr) == (
        20,
        1,
        1,
        2e-5,
    )
    assert options.bridge.max_visual_tokens == 96 and options.language.path == "mamba-130m-hf"
    assert options.cmi.use and options.vision.roi_side == 7
    bridge = parse(TrainBridge, ["--epochs", "3", "--batch_size", "4"], aliases=GUIDE, script=script("train_bridge"))
    assert (bridge.train.global_batch, bridge.train.lr, bridge.loss) == (4, 1e-4, "masked")


def test_training_begins_with_what_the_guides_rule_names(working_folder: Path) -> None:
    outputs = working_folder / "outputs"
    outputs.mkdir()
    assert TrainVlm().first_weights() is None
    for name in ("vision_bridge_final.pt", "vision_bridge_best_val.pt", "vision_bridge_vlm_final.pt"):
        (outputs / name).write_bytes(b"")
        start = TrainVlm().first_weights()
        assert start is not None and start.name == name
    assert TrainVlm(from_scratch=True).first_weights() is None
    start = TrainVlm(vision_checkpoint="outputs/vision_bridge_final.pt").first_weights()
    assert start is not None and start.name == "vision_bridge_final.pt"


def test_a_start_that_is_not_there_or_contradicts_itself_is_refused() -> None:
    with pytest.raises(UserError, match=r"no file .*missing\.pt"):
        TrainVlm(vision_checkpoint="missing.pt").first_weights()
    with pytest.raises(UserError, match="give one"):
        TrainVlm(vision_checkpoint="a.pt", from_scratch=True).first_weights()


def test_a_paths_file_says_what_flags_do_not(working_folder: Path) -> None:
    (working_folder / "config").mkdir()
    (working_folder / "config" / "paths.yaml").write_text(
        "use_cmi: true\ncmi_compress_to: 256\nroi_side: 7\nuse_pooling: true\nencoder_output_stage: 3\n"
    )
    options = given("--roi_side", "5").completed()
    assert (options.vision.roi_side, options.vision.pool_side, options.vision.output_stage) == (5, 12, 3)
    assert options.cmi.use and options.cmi.compress_to == 256
    assert options.vision.preset == "nnunet" and options.language.path == "state-spaces/mamba-2.8b-hf"


def test_a_checkpoint_in_a_paths_file_has_to_be_imported(working_folder: Path) -> None:
    (working_folder / "paths.yaml").write_text("nnunet_encoder_checkpoint: checkpoint_best.pth\n")
    with pytest.raises(UserError, match=r"jobs/import_nnunet\.py .*checkpoint_best\.pth --out nnunet_encoder"):
        given("--paths", "paths.yaml").completed()


def test_without_data_settings_are_small_but_for_those_that_were_given(working_folder: Path) -> None:
    words = ["--epochs", "2"]  # which is the default elsewhere
    options = parse(TrainVlm, words, aliases=GUIDE, defaults=small_without_data(words), script=script("train_vlm"))
    assert options.vision.preset == "tiny" and options.language.path is None and options.train.epochs == 2
    assert small_without_data(["--data=PREPARED"]) is None
    (working_folder / "config").mkdir()
    (working_folder / "config" / "paths.yaml").touch()
    assert small_without_data([]) is None


def checkpoint(cap: int = 96) -> GuideCheckpoint:
    recipe = ReportRecipe(Reading(ImageSettings(size=32)), bridge=BridgeSettings(max_visual_tokens=cap))
    return GuideCheckpoint({"a": torch.zeros(1)}, {"settings": recipe.settings()})


def check_options(*words: str) -> CheckOptions:
    return parse(CheckOptions, list(words), aliases=CHECK_GUIDE, script=script("check_image_to_text"))


def test_a_check_takes_the_checkpoints_settings_and_warns_of_fewer_tokens() -> None:
    recipe, notes = settled(check_options(), checkpoint(), on_gpu=False)
    assert recipe.bridge.max_visual_tokens == 96 and not notes
    recipe, notes = settled(check_options("--max_visual_tokens", "64"), checkpoint(), on_gpu=False)
    assert recipe.bridge.max_visual_tokens == 64 and "in place of the 96 of training" in notes[0]
    recipe, notes = settled(check_options(), checkpoint(), on_gpu=True)
    assert recipe.bridge.max_visual_tokens == 32 and "at most 32" in notes[0]


def test_a_number_of_tokens_that_is_typed_counts_although_it_is_the_default_of_training() -> None:
    with pytest.raises(UserError, match="96: the checkpoint was trained with 16"):
        settled(check_options("--max_visual_tokens", "96"), checkpoint(16), on_gpu=False)


@pytest.mark.parametrize("words", [("--max_visual_tokens", "144"), ("--mamba_model", "mamba-130m-hf")])
def test_a_check_that_contradicts_the_training_is_refused_unless_it_is_forced(words: tuple[str, str]) -> None:
    with pytest.raises(UserError, match="--force"):
        settled(check_options(*words), checkpoint(), on_gpu=False)
    if words[0] == "--max_visual_tokens":
        recipe, notes = settled(replace(check_options(*words), force=True), checkpoint(), on_gpu=False)
        assert recipe.bridge.max_visual_tokens == 144 and notes
