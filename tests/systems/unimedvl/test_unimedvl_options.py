from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import script
from conftest import write_prepared

from raymed.errors import UserError
from raymed.job.command_line import parse
from raymed.models.pretrained import pretrained_of
from raymed.recipes.exported import write_settings
from raymed.systems.unimedvl.asking import GUIDE as ASKING
from raymed.systems.unimedvl.asking import VQA
from raymed.systems.unimedvl.editing import GUIDE as EDITING
from raymed.systems.unimedvl.editing import EditImage
from raymed.systems.unimedvl.guide import GUIDE, PublishedSettings
from raymed.systems.unimedvl.options import UniMedVLOptions
from raymed.systems.unimedvl.recipe import UniMedVLRecipe
from raymed.systems.unimedvl.settings import PRESETS, TINY, UnifiedModelSettings

CONFIG = Path(__file__).parents[3] / "configs" / "unimedvl_sft.yaml"
SCRIPT = """--dataset_config_file data.yaml --resume_from_ema UniMedVL --model_path BAGEL-7B-MoT --auto_resume True
--finetune_from_hf True --max_latent_size 64 --total_steps 100 --save_every 50 --log_every 1 --lr 1e-5 --num_workers 1
--expected_num_tokens 18000 --max_num_tokens 20000 --max_num_tokens_per_sample 17000 --text_cond_dropout_prob 0
--vit_cond_dropout_prob 0.05 --vae_cond_dropout_prob 0 --ce_weight 0.25 --mse_weight 1 --freeze_vit True --freeze_vae True
--ema 0.995 --num_shard 8 --cpu_offload True --visual_gen True --max_checkpoints 1 --data_seed 3432 --copy_init_moe"""


def read(words: str, options_type: type = UniMedVLOptions, aliases: Any = GUIDE, **how: Any) -> Any:
    return parse(options_type, words.split(), aliases=aliases, **how)


def test_the_guides_script_runs_as_it_is_written():
    options = read(SCRIPT, defaults=CONFIG)
    model, train, packing = options.starting_model, options.train, options.packing
    assert (model.path, model.weights, model.freeze_vit, model.copy_init_moe) == ("UniMedVL", "ema", True, True)
    assert (train.steps, train.checkpoint_steps, train.lr, train.ema, train.offload) == (100, 50, 1e-5, 0.995, "cpu")
    assert (packing.expected_num_tokens, packing.max_num_tokens, packing.max_num_tokens_per_sample) == (18000, 20000, 17000)
    assert (options.dropout.text, options.dropout.vit, options.dropout.vae) == (0, 0.05, 0)
    assert (options.loss.ce_weight, options.loss.mse_weight) == (0.25, 1.0)
    assert (options.workers, options.resume, options.visual_gen) == (8, "auto", True)


# Of the published trainer, besides those of the script.
PUBLISHED = """--llm_path Qwen --vit_path siglip --layer_module Qwen2MoTDecoderLayer --llm_qk_norm True
--tie_word_embeddings False --latent_patch_size 2 --vit_patch_size 14 --vit_max_num_patch_per_side 70
--connector_act gelu_pytorch_tanh --interpolate_pos False --vit_select_layer -2 --vit_rope False --visual_und True
--resume_model_only True --resume_model_optimizer True --lr_scheduler cosine --llm_lr 1e-5 --vit_lr 1e-5 --vae_lr
1e-5 --weight_decay 0 --beta1 0.9 --beta2 0.9 --eps 1e-9 --num_replicate 1 --backward_prefetch BACKWARD_PRE
--num_worker 1 --sharding_strategy HYBRID_SHARD --use_flex False --ce_loss_reweighting False --warmup_steps 2000
--min_lr 1e-7 --gradient_accumulation_steps 1 --enable_tensorboard True"""


def test_every_flag_of_the_published_trainer_is_understood():
    options = read(PUBLISHED)
    assert (options.train.final_lr, options.train.weight_decay, options.loss.ce_loss_reweighting) == (0.01, 0, False)
    assert (options.train.beta2, options.train.eps) == (0.9, 1e-9)
    assert read("--lr_scheduler constant").train.final_lr == 1.0


@pytest.mark.parametrize("weights", ["ema", "model"])
def test_a_checkpoint_that_is_resumed_from_gives_the_weights_that_were_asked_for(weights):
    model = read(f"--resume-from UniMedVL --finetune_from_ema {weights == 'ema'}").starting_model
    assert (model.path, model.weights) == ("UniMedVL", weights)


def test_the_guides_settings_are_in_the_configuration():
    options = read("", defaults=CONFIG)
    assert (options.train.steps, options.train.lr, options.train.ema, options.train.zero_stage) == (100, 1e-5, 0.995, 3)
    assert options.packing.max_num_tokens == 20000 and options.dropout.vae == 0
    assert (options.train.beta2, options.train.eps, options.train.weight_decay) == (0.95, 1e-15, 0.0)


def test_the_guides_parameters_of_an_edit_are_understood():
    words = "--model M --image a.png --prompt Darker. --cfg_text_scale 3 --timestep_shift 2 --use_thinking True"
    options = read(words, EditImage, EDITING)
    assert (options.instruction, options.mode) == ("Darker.", "thinking")
    assert (options.drawing.cfg_text_scale, options.drawing.cfg_img_scale, options.drawing.timestep_shift) == (3, 2, 2)
    assert (options.text.temperature, options.text.max_new_tokens, options.text.do_sample) == (0.3, 800, False)


@pytest.mark.parametrize(
    ("words", "expected"), [("", 256), ("--model.preset unimedvl-0.5b", 32_768), ("--packing.expected_num_tokens 200", 200)]
)
def test_sequences_are_as_long_as_the_network_is_made_for(words, expected):
    assert read(words).sampling.expected_num_tokens == expected


TOOL = """--model_path M --image_path a.png --prompt Darker. --target_gpu_device 0 --max_mem_per_gpu 40GiB
--offload_folder tmp --enable_cpu_loading True --enable_auto_bf16_conversion True --show_image --seed 0
--use_model_checkpoint True"""


def test_both_tools_know_all_names_of_the_guide():
    options = read(f"{TOOL} --temperature 0.1 --max_new_tokens 1024 --do_sample False", VQA, ASKING)
    assert (options.model, options.image, options.weights, options.seed) == ("M", "a.png", "model", 0)
    assert (options.text.temperature, options.text.max_new_tokens, options.text.do_sample) == (0.1, 1024, False)
    words = "--cfg_interval [0.4,1] --cfg_renorm_type global --cfg_renorm_min 0.5 --max_think_tokens 9 --do_sample True"
    sizes = "--vae_transform_size [1024,32,16] --vit_transform_size [980,378,14] --image_shapes [1024,1024]"
    options = read(f"{TOOL} {words} {sizes}", EditImage, EDITING)
    assert (options.drawing.cfg_interval, options.drawing.cfg_renorm_type) == ((0.4, 1.0), "global")
    assert (options.text.max_new_tokens, options.text.do_sample, options.weights) == (9, True, "model")


@dataclass(frozen=True)
class Data:
    """What options ask of prepared data."""

    lines: dict[str, dict[str, int]]

    @property
    def manifest(self) -> Any:
        return SimpleNamespace(settings={"lines": self.lines})

    folder = SimpleNamespace(uri="PREPARED")


WIDE = '{"train.lr":{"low":5.0e-4,"high":1.0e-2,"log":true}}'  # of configs/tune_unimedvl.yaml
READING = Data({"a": {"vae": 0, "target": 0, "vit": 0}})


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--model.path UniMedVL", "would ruin UniMedVL"),
        (f"--model.path M --train.lr 1e-5 --search.space {WIDE}", "space of train.lr .* would ruin M"),
        ("--visual-gen true", "has no picture to draw"),
        ("--model.preset unimedvl-7b", "needs an image autoencoder"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_read(words, named):
    with pytest.raises(UserError, match=named):
        read(words).recipe(READING)


def test_what_the_published_trainer_counts_otherwise_is_translated():
    words = (
        "--total_steps 100 --warmup_steps 10 --lr 1e-4 --lr_scheduler cosine --min_lr 1e-6 --gradient_accumulation_steps 3"
    )
    options = read(f"{words} --num_shard 2 --vit_lr 2e-5 --max_latent_size 32")
    train = options.published.train(options.train, options.workers)
    assert (train.warmup, train.final_lr, train.global_batch, train.micro_batch) == (0.1, pytest.approx(0.01), 6, 1)
    assert (options.published.vit_lr, options.model.max_latent_size) == (2e-5, 32)
    constant = read("--total_steps 100 --lr_scheduler constant --min_lr 1e-6")
    assert constant.published.train(constant.train, 1).final_lr == 1.0, "the floor is the cosine's"


def test_a_warm_up_that_would_not_end_is_shortened_and_told(caplog):
    train = PublishedSettings(warmup_steps=2000).train(read("--total_steps 200").train, 1)
    assert train.warmup == 0.05 and "2000 steps would not end in 200: it takes 10" in caplog.text


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--warmup_steps 10", "goes with --total-steps"),
        ("--min_lr 1.0 --lr 1e-4", "min_lr 1 is above"),
    ],
)
def test_published_settings_that_contradict_others_are_refused(words, named):
    options = read(words)
    with pytest.raises(UserError, match=named):
        options.published.train(options.train, 1)


@pytest.mark.parametrize(("given", "seen"), [("true", 0), ("false", 3)])
def test_data_that_are_not_as_visual_und_says_are_refused(given, seen):
    data = Data({"a": {"vae": 0, "target": 0, "vit": seen}})
    with pytest.raises(UserError, match=f"--visual-und {given}, and {seen or 'no'} pictures"):
        read(f"--visual-und {given}").recipe(data)


def test_a_run_is_known_by_what_its_checkpoint_or_image_autoencoder_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    located = UnifiedModelSettings(vae_path="flux").located()
    assert located.vae_path == str(tmp_path / "flux"), "workers would look for it in their own folder"
    for model, path in ((located, located.vae_path), (UnifiedModelSettings(path="/u"), "/u")):
        assert list(pretrained_of(UniMedVLRecipe(PRESETS[TINY], model))) == [path]


@pytest.mark.parametrize(("patients", "split"), [(8, "test"), (7, "val")])
def test_the_patients_that_are_judged_are_those_that_are_there(tmp_path: Path, patients: int, split: str) -> None:
    """The default shares leave no test patients: the command that training prints ended in an error."""
    prepared, job = write_prepared(tmp_path / "data", patients), script("evaluate_unimedvl")
    write_settings(tmp_path, UniMedVLRecipe(PRESETS[TINY]).settings())
    options = {"model": str(tmp_path), "data": prepared.folder.uri, "dry_run": True, "storage": str(tmp_path / "runs")}
    assert job.main(job.EvaluateUnimedvl(**options)).text.endswith(f"on 4 records ({split})")
    assert f"--split {split} --out judged" in UniMedVLOptions(data=prepared.folder.uri).advice(prepared)


def test_a_model_is_not_opened_where_there_is_nobody_to_judge_it_by(tmp_path: Path) -> None:
    prepared, job = write_prepared(tmp_path / "data", patients=6), script("evaluate_unimedvl")
    write_settings(tmp_path, UniMedVLRecipe(PRESETS[TINY]).settings())  # and no weights
    options = {"model": str(tmp_path), "data": prepared.folder.uri, "storage": str(tmp_path / "runs")}
    with pytest.raises(UserError, match="has no val patients: choose another --split"):
        job.main(job.EvaluateUnimedvl(**options))
    assert "evaluate_unimedvl" not in UniMedVLOptions(data=prepared.folder.uri).advice(prepared)
