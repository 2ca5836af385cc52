"""Command line and configuration files of CLIP training: the guide's flags and defaults, and every bad entry named."""

import json
import shlex
from pathlib import Path

import pytest

from raymed.errors import UserError
from raymed.job.job import parse
from raymed.models.settings import ClipModelSettings
from raymed.systems.clip.options import GUIDE, ClipOptions
from raymed.systems.clip.runs import TrainClip, read_configurations

CONFIGS = Path(__file__).parents[3] / "configs"


def options(*words: str) -> TrainClip:
    return parse(TrainClip, words, aliases=GUIDE)


def test_the_defaults_are_the_guide_s():
    found = options("--data-dir", "IMAGES", "--output-dir", "OUT")
    assert (found.data, found.output_dir) == ("IMAGES", "OUT")
    assert found.model == ClipModelSettings("starnet_dual_pyramid_rcf", None, "bert-base-chinese", 512, 0.07)
    train = found.train
    assert (train.global_batch, train.epochs, train.lr, train.weight_decay) == (32, 100, 1e-4, 0.01)
    assert (train.patience, train.min_delta, train.monitor) == (0, 0.0, "val_acc")
    assert (train.precision, train.warmup, train.final_lr) == ("amp", 0.0, 0.0)
    assert (found.size, found.augment.preset, found.seed, found.n_splits) == (224, "standard", 42, 5)
    assert (found.text_template, found.class_texts_file, found.resume_from, found.config_file) == (None, None, None, None)
    assert (found.use_cv, found.multi_config, found.save_best) == (False, False, True)


def test_every_flag_of_the_guide_is_understood(caplog):
    with caplog.at_level("INFO", "raymed"):
        found = options(
            *shlex.split("""
                --data-dir D --output-dir O --text-template 图{class_name} --class-texts-file T.json
                --image-encoder resnet50 --text-encoder bert --embed-dim 256 --temperature 0.1 --batch-size 16
                --epochs 7 --learning-rate 1e-3 --weight-decay 0.1 --img-size 112 --augmentation minimal
                --num-workers 2 --gpu-id 1 --no-amp --resume-from X.pth --no-save-best --use-cv --n-splits 3
                --random-state 7 --early-stopping-patience 30 --early-stopping-min-delta 0.1
                --early-stopping-monitor val_loss --multi-config --config-file C.json
            """)
        )
    assert (found.text_template, found.class_texts_file) == ("图{class_name}", "T.json")
    assert found.model == ClipModelSettings("resnet50", None, "bert", 256, 0.1)
    train = found.train
    assert (train.global_batch, train.epochs, train.lr, train.weight_decay) == (16, 7, 1e-3, 0.1)
    assert (train.precision, train.patience, train.min_delta) == ("fp32", 30, 0.1)
    assert (train.patience_monitor, train.monitor) == ("val_loss", "val_acc"), "the best epoch is the guide's"
    assert (found.size, found.augment.preset, found.seed, found.n_splits) == (112, "minimal", 7, 3)
    assert (found.use_cv, found.multi_config, found.save_best) == (True, True, False)
    assert "--gpu-id" in caplog.text and "--num-workers" in caplog.text, "what means nothing any more must be said"


def test_a_batch_of_the_guide_s_is_one_for_batch_norms_and_the_contrast_too(tmp_path, caplog):
    """Where nothing else is said: a file, another word, or an entry of its own wins."""

    def sizes(found: TrainClip) -> tuple[int, int, int]:
        return found.train.global_batch, found.train.norm_group, found.train.micro_batch

    with caplog.at_level("INFO", "raymed"):
        assert sizes(options("--batch-size", "64")) == (64, 64, 64)
    assert "--train.micro_batch" in caplog.text
    assert sizes(options("--train.norm_group", "16", "--batch-size=64")) == (64, 16, 64)
    assert sizes(options("--train.global_batch", "64")) == (64, 32, 32)
    (tmp_path / "own.yaml").write_text("train: {global_batch: 8, norm_group: 16}")
    assert sizes(options("--config", str(tmp_path / "own.yaml"), "--batch-size", "64")) == (64, 16, 64)
    with pytest.raises(UserError, match="global_batch"):
        options("--batch-size", "many")
    (tmp_path / "C.json").write_text('[{"batch_size": 64}, {"batch_size": 64, "train.micro_batch": 8}]')
    entries = read_configurations(tmp_path / "C.json", options(), GUIDE)
    assert [sizes(entry) for entry in entries] == [(64, 64, 64), (64, 64, 8)]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--config-file", "C.json"], "--multi-config"),
        (["--multi-config"], "--config-file"),
        (["--resume-from", "X.pth", "--use-cv"], "single run"),
        (["--use-cv", "--fold", "1"], "--fold"),
    ],
)
def test_modes_that_do_not_go_together_are_named(words, named):
    with pytest.raises(UserError, match=named):
        options(*words).check_modes()


def configurations(tmp_path: Path, *entries: object) -> list[TrainClip | UserError]:
    path = tmp_path / "configs.json"
    path.write_text(json.dumps(entries, ensure_ascii=False), "utf-8")
    return read_configurations(path, options("--data-dir", "D", "--multi-config", "--config-file", str(path)), GUIDE)


def test_the_example_file_has_the_guide_s_keys_and_runs_without_folds():
    path = CONFIGS / "train_clip_config.json"
    first, second = read_configurations(path, options("--data-dir", "D"), GUIDE)
    assert (first.model.image_encoder, second.model.image_encoder) == ("starnet_dual_pyramid_rcf", "resnet50")
    assert (first.use_cv, first.n_splits) == (False, 5), "n_splits alone must not switch folds on"
    assert (first.train.precision, first.train.patience, first.train.monitor) == ("amp", 0, "val_acc")
    assert not (first.class_texts or second.class_texts), "a file for any classes names none"
    assert first.text_template == second.text_template == "这是一张{class_name}的医学图像"


def test_the_guide_s_own_command_is_there_to_the_number():
    (found,) = read_configurations(CONFIGS / "guide_clip.json", options("--data-dir", "D"), GUIDE)
    guide = """--data-dir D --image-encoder starnet_dual_pyramid_rcf --text-encoder bert-base-chinese --embed-dim 512
        --batch-size 32 --epochs 100 --learning-rate 1e-4 --gpu-id 0 --loss clip --train.clip 0"""
    assert found == options(*shlex.split(guide))


def test_an_entry_changes_what_it_names_and_nothing_else(tmp_path):
    (found,) = configurations(tmp_path, {"learning_rate": 3e-4, "use_amp": False, "early_stopping_patience": 5, "gpu_id": 1})
    assert (found.train.lr, found.train.precision, found.train.patience) == (3e-4, "fp32", 5)
    assert (found.train.epochs, found.data, found.multi_config) == (100, "D", False)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"learning_rat": 1}, "'learning_rat': did you mean learning_rate"),
        ({"epochs": "many"}, r"'epochs': \"many\""),
        ({"epochs": 1.5}, "'epochs'"),
        ({"epochs": None}, "'epochs'"),
        ({"epochs": 0}, "'epochs'"),
        ({"use_cv": 1}, "'use_cv'"),
        ({"use_cv": "yes"}, "'use_cv'.*true or false, without quotes"),
        ({"augmentation": "wild"}, "'augmentation'"),
        ({"temperature": -1}, "'temperature'"),
        ({"output_dir": "OUT"}, "'output_dir' holds for all"),
        ({"workers": 2}, "'workers' holds for all"),
        ({"train": 3}, "'train' has settings of its own"),
        ({"train": {"rate": 3}}, r"'train\.rate'"),
    ],
)
def test_a_wrong_entry_is_named_by_its_key_and_the_others_are_read(tmp_path, entry, named):
    wrong, right = configurations(tmp_path, entry, {"epochs": 3})
    assert isinstance(wrong, UserError)
    with pytest.raises(UserError, match=named):
        raise wrong
    assert right.train.epochs == 3


@pytest.mark.parametrize("content", ["{}", "[]", "[1]", "[{", '"x"'])
def test_a_file_that_is_no_list_of_configurations_is_named(tmp_path, content):
    path = tmp_path / "configs.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"configs\.json"):
        read_configurations(path, options("--data-dir", "D"), GUIDE)


def test_a_section_of_an_entry_changes_what_it_names_and_nothing_else(tmp_path):
    (found,) = configurations(tmp_path, {"train": {"lr": 0.01}, "model": {"embed_dim": 32}})
    assert (found.train.lr, found.train.epochs, found.train.global_batch) == (0.01, 100, 32)
    assert (found.model.embed_dim, found.model.image_encoder) == (32, ClipOptions().model.image_encoder)
