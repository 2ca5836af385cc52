from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import script
from report_data import write_reports

from raymed.data.image import ImageSettings
from raymed.errors import UserError
from raymed.job.job import parse
from raymed.systems.mamba_vlm import check_settings
from raymed.systems.mamba_vlm.bridge_recipe import BridgeRecipe
from raymed.systems.mamba_vlm.check import CHECK_GUIDE, CheckOptions
from raymed.systems.mamba_vlm.guide_files import GuideCheckpoint
from raymed.systems.mamba_vlm.intensity import Intensity
from raymed.systems.mamba_vlm.options import GUIDE, TrainBridge, TrainVlm
from raymed.systems.mamba_vlm.recipe import ReportRecipe
from raymed.systems.mamba_vlm.settings import BridgeSettings, LanguageSettings, VisionSettings
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
    assert options.bridge.max_visual_tokens == 96 and options.llm.path == "mamba-130m-hf"
    assert options.cmi.use and options.vision.roi_side == 7
    bridge = parse(
        TrainBridge,
        ["--data", "PREPARED", "--epochs", "3", "--batch_size", "4"],
        aliases=GUIDE,
        script=script("train_bridge"),
    )
    assert (bridge.train.global_batch, bridge.train.lr, bridge.loss) == (4, 1e-4, "masked")


def test_the_guides_setting_for_little_memory_takes_eight_reports_a_step_one_at_a_time() -> None:
    words = "--batch_size 1 --gradient_accumulation_steps 8 --max_visual_tokens 64 --max_text_len 256"
    options = given(*words.split()).completed()
    assert (options.train.global_batch, options.train.micro_batch) == (8, 1)
    assert (options.bridge.max_visual_tokens, options.max_text_len) == (64, 256)
    with pytest.raises(UserError, match="at least 1"):
        given("--gradient_accumulation_steps", "0").completed()


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
    assert options.vision.preset == "nnunet" and options.llm.path == "state-spaces/mamba-2.8b-hf"


def test_a_flag_with_the_value_of_the_default_goes_before_the_paths_file_too(working_folder: Path) -> None:
    (working_folder / "paths.yaml").write_text("use_cmi: true\nroi_side: 7\ncmi_compress_to: 256\n")
    words = ["--paths", "paths.yaml", "--use_cmi", "false", "--roi_side=0"]
    options = given(*words)
    assert (options.cmi.use, options.vision.roi_side, options.cmi.compress_to) == (False, 0, 256)


def test_a_checkpoint_in_a_paths_file_has_to_be_imported(working_folder: Path) -> None:
    (working_folder / "paths.yaml").write_text("nnunet_encoder_checkpoint: checkpoint_best.pth\n")
    with pytest.raises(UserError, match=r"jobs/import_nnunet\.py .*checkpoint_best\.pth --out nnunet_encoder"):
        given("--paths", "paths.yaml").completed()


def test_without_data_settings_are_small_but_for_those_that_were_given(working_folder: Path) -> None:
    words = ["--epochs", "2"]  # which is the default elsewhere
    options = given(*words)
    assert options.vision.preset == "tiny" and options.llm.path is None and options.train.epochs == 2
    assert given("--data=PREPARED").vision.preset == "nnunet"
    (working_folder / "data.yaml").write_text("data: PREPARED\n")
    assert given("--config", "data.yaml").vision.preset == "nnunet", "data that a file names are data of one's own, too"
    (working_folder / "config").mkdir()
    (working_folder / "config" / "paths.yaml").write_text("use_cmi: true\n")
    assert given().vision.preset == "nnunet"


READING = Reading(ImageSettings(size=32))


def checkpoint(cap: int = 96) -> GuideCheckpoint:
    recipe = ReportRecipe(READING, bridge=BridgeSettings(max_visual_tokens=cap))
    return GuideCheckpoint({"a": torch.zeros(1)}, {"settings": recipe.settings()})


def settled(
    options: CheckOptions, checkpoint: GuideCheckpoint, on_gpu: bool = False, path: Path = Path("vision_bridge_vlm_final.pt")
) -> tuple[ReportRecipe, list[str]]:
    return check_settings.settled(options, checkpoint, path, on_gpu)


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


def test_a_number_that_is_a_default_elsewhere_counts_where_it_is_typed() -> None:
    with pytest.raises(UserError, match="--force"):
        settled(check_options("--max_visual_tokens", "96"), checkpoint(64))
    stage_1 = GuideCheckpoint({}, {"settings": BridgeRecipe(READING).settings()})
    assert settled(check_options("--max_visual_tokens", "96"), stage_1)[0].bridge.max_visual_tokens == 96
    assert settled(check_options(), stage_1)[0].bridge.max_visual_tokens == 64
    with pytest.raises(UserError, match=r"--mamba_model state-spaces/mamba-2\.8b-hf"):
        settled(check_options("--mamba_model", "state-spaces/mamba-2.8b-hf"), checkpoint())


def test_a_model_is_the_same_wherever_it_lies_now(working_folder: Path) -> None:
    """A path with a drive letter was taken for a name, on either side."""
    recipe = ReportRecipe(READING, language=LanguageSettings(path="/elsewhere/mamba-130m-hf"))
    trained = GuideCheckpoint({}, {"settings": recipe.settings()})
    with pytest.raises(UserError, match="there is no model '/mnt/d/models/mamba-130m-hf'"):  # and none is another
        settled(check_options("--mamba_model", r"D:\models\mamba-130m-hf"), trained)
    (working_folder / "mamba-130m-hf").mkdir()
    on_windows = replace(recipe, language=LanguageSettings(path=r"D:\models\mamba-130m-hf"))
    trained = GuideCheckpoint({}, {"settings": on_windows.settings()})
    found, _ = settled(check_options("--mamba_model", "mamba-130m-hf"), trained)
    assert found.language.path == str(working_folder / "mamba-130m-hf")


def test_a_region_or_an_interaction_that_was_not_trained_is_refused_and_one_in_the_file_is_told(
    working_folder: Path,
) -> None:
    for words in (("--roi_side", "7"), ("--use_cmi",), ("--bridge.kind", "linear")):
        with pytest.raises(UserError, match=r"trained with .*--force"):
            settled(check_options(*words), checkpoint())
    forced, _ = settled(check_options("--roi_side", "7", "--force"), checkpoint())
    assert forced.vision.roi_side == 7
    (working_folder / "config").mkdir()
    (working_folder / "config" / "paths.yaml").write_text("use_cmi: true\nnnunet_encoder_checkpoint: best.pth\n")
    recipe, notes = settled(check_options(), checkpoint())
    assert not recipe.cmi.use and "cmi.use True; the checkpoint was trained with False" in notes[0]
    stage_1 = GuideCheckpoint({}, {"settings": BridgeRecipe(READING).settings()})
    assert settled(check_options(), stage_1)[0].cmi.use, "the interaction is random there, as the guide has it"


def test_a_checkpoint_without_settings_is_looked_at_as_the_file_beside_it_says(
    working_folder: Path,
) -> None:
    (working_folder / "stage2_config.json").write_text('{"max_visual_tokens": 81, "mamba_model": null}')
    older = GuideCheckpoint({}, {})
    path = working_folder / "vision_bridge_vlm_final.pt"
    words = ("--image", "case.nii.gz", "--llm.path", "null")
    assert settled(check_options(*words), older, path=path)[0].bridge.max_visual_tokens == 81
    with pytest.raises(UserError, match="--max_visual_tokens 96: the checkpoint was trained with 81"):
        settled(check_options(*words, "--max_visual_tokens", "96"), older, path=path)
    of_stage_1 = working_folder / "vision_bridge_best_val.pt"
    found, _ = settled(check_options(*words, "--max_visual_tokens", "96"), older, path=of_stage_1)
    assert found.bridge.max_visual_tokens == 96
    (working_folder / "stage2_config.json").write_text("{")
    with pytest.raises(UserError, match=r"stage2_config\.json cannot be read"):
        settled(check_options(), older, path=path)


def test_a_checkpoint_of_the_guides_scripts_sees_what_they_showed_it_and_no_phantoms(
    working_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It was shown pictures of 64 pixels in a lung window, as phantoms have them, or by the plans of an encoder."""
    older, words = GuideCheckpoint({}, {}), ("--llm.path", "null")
    for more in (("--image", "case.nii.gz"), ()):
        recipe, notes = settled(check_options(*words, *more), older)
        assert recipe.reading == Reading(ImageSettings(512, window="minmax")) and recipe.intensity == Intensity()
        assert "as the guide's scripts read them" in notes[0]
        (working_folder / "config").mkdir(exist_ok=True)
        (working_folder / "config" / "paths.yaml").write_text("caption_csv_train: a.csv\ncaption_csv_val: b.csv\n")
    assert not (working_folder / "runs").exists()
    prepared = write_reports(tmp_path_factory.mktemp("prepared") / "data")
    recipe, notes = settled(check_options(*words, "--data", prepared.folder.uri), older)
    assert recipe.size == 32 and not notes, "what a person says of the data counts"


def test_8_bits_on_a_cpu_are_refused_and_not_left_out() -> None:
    with pytest.raises(UserError, match="--llm_device auto"):
        settled(check_options("--llm_8bit"), checkpoint())


def test_the_guides_check_flags_are_understood() -> None:
    words = "--max_new_tokens 20 --llm_device cpu --repetition_penalty 1.2 --temperature 0.7 --top_p 0.95 --no_do_sample"
    options = check_options(*words.split(), "--debug_vision", "--out_dir", "elsewhere", "--save_out")
    assert options.out_dir == "elsewhere" and options.save_out and not options.generation.sample


def test_a_paths_file_counts_beside_prepared_data_too(working_folder: Path) -> None:
    (working_folder / "config").mkdir()
    (working_folder / "config" / "paths.yaml").write_text("use_cmi: true\nnnunet_encoder_checkpoint: best.pth\n")
    with pytest.raises(UserError, match="import_nnunet"):  # else the encoder would begin with random weights
        given("--data", "PREPARED").completed()
    options = given("--data", "PREPARED", "--vision.encoder", "encoder").completed()
    assert options.cmi.use and options.vision.encoder == "encoder"


def test_tokens_of_another_width_than_the_language_models_are_refused(working_folder: Path) -> None:
    (working_folder / "paths.yaml").write_text("bridge_d_model: 2560\n")
    with pytest.raises(UserError, match=r"bridge_d_model is 2560, and the language model has the width 64"):
        TrainVlm(paths="paths.yaml").check_width(LanguageSettings())


def test_models_on_a_drive_are_looked_for_where_linux_mounts_it() -> None:
    for settings in (LanguageSettings(path=r"D:\models\mamba-130m-hf"), VisionSettings(encoder=r"D:\models\mamba-130m-hf")):
        with pytest.raises(UserError, match="/mnt/d/models/mamba-130m-hf"):
            settings.located()
