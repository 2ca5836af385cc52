"""CLIP training from class folders to the guide's files: configurations, folds, a wrong entry, prediction."""

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from commands import done as job_done
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ResNetForImageClassification

from raymed.errors import UserError
from raymed.job.job import parse
from raymed.models import backbones
from raymed.systems.clip import checkpoint
from raymed.systems.clip.options import GUIDE
from raymed.systems.clip.runs import TrainClip
from raymed.tracking.tracker import Tracker

sys.path.insert(0, str(Path(__file__).parents[3] / "jobs"))
import check_clip
import compare_texts
import predict_clip
import promote
import train_clip

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]

CLASSES = ["正常", "肺炎"]
SMALL = {"image_encoder_name": "tiny", "text_encoder_name": "characters", "embed_dim": 16, "img_size": 32, "epochs": 2}
CONFIGS = [  # of the first, a fixture says where its weights lie
    SMALL | {"n_splits": 2},
    SMALL | {"augmentation": "none", "learning_rate": 3e-3, "batch_size": 8, "use_amp": False, "n_splits": 2},
    SMALL | {"learning_rat": 1.0},
    SMALL | {"use_cv": True, "n_splits": 2, "augmentation": "minimal", "early_stopping_patience": 1},
    SMALL | {"learning_rate": 1e30, "n_splits": 2},
]
RUN = {"history.json", "training_history.png", "checkpoint_latest.pth", "checkpoint_best.pth"}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two classes of twelve pictures, told apart by their brightness."""
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for number in range(12):
            pixels = draw.integers(0, 90, (40, 40), dtype=np.uint8) + np.uint8(140 * label)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")
    return folder


def write_weights_that_do_not_fit(folder: Path) -> None:
    """Those of a network of the right shape, one tensor of which has another: a worker is the first to see that."""
    ResNetForImageClassification(backbones.PRESETS["tiny"](32)).save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    key = next(name for name, tensor in state.items() if tensor.ndim == 4)
    save_file(state | {key: state[key][:-1].clone()}, folder / "model.safetensors")


@pytest.fixture(scope="module")
def words(images, tmp_path_factory) -> list[str]:
    home = tmp_path_factory.mktemp("clip")
    write_weights_that_do_not_fit(home / "weights")
    configs = [CONFIGS[0] | {"model.image_weights": str(home / "weights")}, *CONFIGS[1:]]
    (home / "configs.json").write_text(json.dumps(configs, ensure_ascii=False), "utf-8")
    words = ["--data-dir", images, "--storage", home, "--output-dir", home / "out", "--multi-config"]
    return [str(word) for word in [*words, "--config-file", home / "configs.json"]]


@pytest.fixture(scope="module")
def done(words) -> tuple[Path, str]:
    """The output folder, and what the job said in the end."""
    with pytest.raises(UserError) as said:
        train_clip.main(parse(TrainClip, words, aliases=GUIDE))
    return Path(words[words.index("--output-dir") + 1]), str(said.value)


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def of_entry(output: Path, **settings: object) -> Path:
    """The folder of the configuration with these settings."""
    configs = {path.parent: read(path) for path in output.glob("*/config.json")}
    (found,) = [folder for folder, config in configs.items() if settings.items() <= config.items()]
    return found


def single(output: Path) -> Path:
    return of_entry(output, learning_rate=3e-3)


def folds(output: Path) -> Path:
    return of_entry(output, use_cv=True)


def unfit(output: Path) -> Path:
    """Whose weights do not fit."""
    return of_entry(output, learning_rate=1e-4, use_cv=False)


def test_a_wrong_entry_and_a_failing_run_are_named_and_the_others_are_trained(done):
    output, said = done
    assert "configs.json, entry 3: unknown key 'learning_rat'" in said
    diverged = of_entry(output, learning_rate=1e30).name
    assert re.search(f"^{diverged} failed: .*training has diverged", said, re.MULTILINE)
    assert re.search(f"^{unfit(output).name} failed: the weights in .* do not fit", said, re.MULTILINE)
    names = {unfit(output).name, single(output).name, folds(output).name, diverged}
    ranking = {"multi_summary.json", "multi_summary.csv"}
    assert {path.name for path in output.iterdir()} == names | ranking, "runs share a folder"
    assert "ranked by the loss of their patients" in said
    summary = read(output / "multi_summary.json")
    assert {each["name"] for each in summary["ranking"]} == names - {unfit(output).name, diverged}
    assert len(summary["not_trained"]) == 3 and summary["ranking"][0]["more_loss"] is None


def test_a_check_before_the_night_names_the_same_entries_and_computes_the_others(words, done):
    with pytest.raises(UserError) as said:
        check_clip.main(parse(check_clip.CheckClip, words, aliases=GUIDE))
    found = str(said.value)
    assert "configs.json, entry 3: unknown key 'learning_rat'" in found
    assert re.search(f"^{unfit(done[0]).name}: fails: the weights in .* do not fit", found, re.MULTILINE)
    for name, pictures in ((single(done[0]).name, 8), (folds(done[0]).name, 12)):
        assert re.search(rf"^{name}: .* {pictures} pictures of 32 pixels at once in .*; loss \d", found, re.MULTILINE)


def test_texts_of_files_are_compared_on_the_patients_of_a_checkpoint(words, done, tmp_path):
    (tmp_path / "long.json").write_text(json.dumps({"正常": "肺野清晰", "肺炎": "肺野有实变"}, ensure_ascii=False), "utf-8")
    asked = ["--checkpoint", single(done[0]) / "checkpoint_best.pth", "--texts", tmp_path / "long.json"]
    asked += ["--storage", words[words.index("--storage") + 1]]
    compared = compare_texts.main(parse(compare_texts.CompareTexts, [str(word) for word in asked], aliases=GUIDE))
    own, other = compared.data["texts"]
    assert own["accuracy"] == pytest.approx(
        read(single(done[0]) / "result.json")["figures"]["patients"]["accuracy"]["value"]
    )
    assert (own["more_loss"], other["name"]) == (None, str(tmp_path / "long.json")) and other["nearest"]["正常"][0] == "肺炎"
    assert "against the first: loss " in compared.text and "validation patients of" in compared.text


def test_mlflow_holds_one_parent_and_one_child_for_each_run_with_its_fold(done):
    tracker = Tracker.open(f"sqlite:///{done[0].parent}/mlflow.db", "raymed-clip")
    runs = {run.info.run_name: run for run in tracker.client.search_runs([tracker.experiment_id])}
    found = {name: run.data.tags["raymed.fold"] for name, run in runs.items() if "mlflow.parentRunId" in run.data.tags}
    one, several, diverged = single(done[0]).name, folds(done[0]).name, of_entry(done[0], learning_rate=1e30).name
    parts = {f"{several}-fold_1": "0", f"{several}-fold_2": "1", f"{several}-folds": ""}
    assert found == {unfit(done[0]).name: "", one: "", **parts, diverged: ""}
    assert len(runs) == 7
    (data,) = runs[f"{several}-fold_2"].inputs.dataset_inputs
    assert data.tags[0].value == "training without fold 1"
    assert runs[unfit(done[0]).name].info.status == runs[diverged].info.status == "FAILED"
    assert runs[one].info.status == "FINISHED"


def test_a_single_run_leaves_the_guide_s_files(done):
    folder = single(done[0])
    files = {"config.json", "confusion_matrix.png", "result.json", "patients.csv"}
    assert {path.name for path in folder.iterdir()} == RUN | files, "n_splits alone must not make folds"
    config, history = read(folder / "config.json"), read(folder / "history.json")
    assert (config["learning_rate"], config["use_amp"], config["epochs"]) == (3e-3, False, 2)
    about = history.pop("about")
    assert set(history) == set(about) == {"train_loss", "train_acc", "val_loss", "val_acc"}
    assert "over the texts of all classes" in about["train_loss"] and "each image's class" in about["val_loss"]
    assert {len(values) for values in history.values()} == {2}
    latest, best = (torch.load(folder / f"checkpoint_{name}.pth", weights_only=True) for name in ("latest", "best"))
    assert latest["epoch"] == 2
    assert best["epoch"] == history["val_acc"].index(max(history["val_acc"])) + 1
    assert latest["class_to_idx"] == {"正常": 0, "肺炎": 1}
    assert latest["class_texts"] == {"正常": ["正常"], "肺炎": ["肺炎"]}


def test_folds_leave_a_folder_each_and_a_summary(done):
    folder = folds(done[0])
    files = {"config.json", "cv_summary.json", "confusion_matrix.png", "result.json", "patients.csv"}
    assert {path.name for path in folder.iterdir()} == files | {"fold_1", "fold_2"}
    histories = []
    for fold in (1, 2):
        assert {path.name for path in (folder / f"fold_{fold}").iterdir()} == RUN
        histories.append(read(folder / f"fold_{fold}" / "history.json"))
    summary = read(folder / "cv_summary.json")
    assert {"config", "fold_results", "average_results"} <= set(summary)
    for name in ("train_loss", "train_acc", "val_loss", "val_acc"):
        last = [history[name][-1] for history in histories]
        assert summary["fold_results"][f"fold_{name}"] == last
        assert summary["average_results"][f"avg_{name}"] == pytest.approx(np.mean(last))
        assert summary["average_results"][f"std_{name}"] == pytest.approx(abs(last[0] - last[1]) / 2), "of the population"
    assert summary["fold_results"]["fold_best_val_acc"] == [max(history["val_acc"]) for history in histories]
    accuracy = summary["patients"]["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert accuracy["value"] == pytest.approx(summary["average_results"]["avg_patient_accuracy"]), "folds of one size"
    assert [sum(row) for row in summary["confusion"]] == [12, 12], "every patient is judged once"
    assert [each["name"] for each in summary["classes"]] == CLASSES
    patients = pd.read_csv(folder / "patients.csv")
    assert len(patients) == 24 and set(patients["fold"]) == {1, 2}, "each by the network that was not trained on it"


def test_folds_that_are_asked_for_on_the_command_line_are_trained_and_told_in_the_users_language(images, tmp_path):
    texts = {"正常": ["肺野清晰"], "肺炎": ["肺野有实变", "一侧肺炎"]}
    (tmp_path / "texts.json").write_text(json.dumps(texts, ensure_ascii=False), "utf-8")
    words = ["--data-dir", images, "--output-dir", "out", "--class-texts-file", "texts.json", "--use-cv", "--n-splits", "2"]
    words += ["--epochs", "1", "--batch-size", "8"]
    words += ["--image-encoder", "tiny", "--text-encoder", "characters", "--embed-dim", "16", "--img-size", "32"]
    told = job_done("train_clip", tmp_path, *words, "--language", "zh")
    assert told.startswith("2 折：最佳 val_acc ") and "全部图像，各由没有用它训练的网络评判" in told
    assert "校准并注册各网络的平均：python jobs/promote.py " in told
    assert read(tmp_path / "out" / "cv_summary.json")["folds"] == [1, 2]
    for file in (tmp_path / "out").rglob("*.pth"):
        assert torch.load(file, weights_only=True)["class_texts"] == texts


def test_folds_are_registered_as_the_mean_of_their_networks_with_the_figures_of_those_left_out(images, done, tmp_path):
    tracking = f"sqlite:///{done[0].parent}/mlflow.db"
    (run,) = re.findall(r"the mean of its networks: python jobs/promote.py (\w+)", done[1])
    promoted = promote.main(parse(promote.Promote, [run, "--tracking-uri", tracking, "--storage", str(tmp_path)], True))
    summary = read(folds(done[0]) / "cv_summary.json")
    assert promoted.data["figures"]["calibrated_val_accuracy"] == pytest.approx(summary["patients"]["accuracy"]["value"])
    outputs = []
    for model in (promoted.data["model"], folds(done[0])):
        arguments = ["--model", model, "--input", images, "--tracking-uri", tracking]
        outputs.append(tmp_path / f"{len(outputs)}.csv")
        arguments = [*arguments, "--out", outputs[-1], "--storage", tmp_path]
        predict_clip.main(parse(predict_clip.PredictClip, [str(word) for word in arguments], aliases=predict_clip.GUIDE))
    registered, folder = (pd.read_csv(output) for output in outputs)
    assert registered["decision"].tolist() == folder["decision"].tolist()


def trials_of_runs(output: Path) -> set[tuple[str, str, str | None]]:
    """Name and id of each run in MLflow, and the number of its last trial: another one where it was trained again."""
    tracker = Tracker.open(f"sqlite:///{output.parent}/mlflow.db", "raymed-clip")
    found = (each for each in tracker.client.search_runs([tracker.experiment_id]) if "mlflow.parentRunId" in each.data.tags)
    return {(each.info.run_name, each.info.run_id, each.data.tags.get("raymed.trial")) for each in found}


def test_the_same_command_trains_only_what_failed_again(words, done):
    """As MLflow counts it: files stay as they are also where what finished is trained again, to the same epochs."""
    before = trials_of_runs(done[0])
    with pytest.raises(UserError, match="entry 3"):
        train_clip.main(parse(TrainClip, words, aliases=GUIDE))
    assert {name for name, *_ in trials_of_runs(done[0]) - before} == {
        unfit(done[0]).name,
        of_entry(done[0], learning_rate=1e30).name,
    }


def test_an_entry_that_is_mended_and_put_first_is_trained_and_the_others_are_not_trained_again(words, done):
    mended = [SMALL | {"learning_rate": 1e-3, "n_splits": 2, "save_best": False}, CONFIGS[3], CONFIGS[1]]
    (done[0].parent / "mended.json").write_text(json.dumps(mended, ensure_ascii=False), "utf-8")
    before = trials_of_runs(done[0])
    outcome = train_clip.main(parse(TrainClip, [*words[:-1], str(done[0].parent / "mended.json")], aliases=GUIDE))
    assert {name for name, *_ in trials_of_runs(done[0]) - before} == {(new := of_entry(done[0], learning_rate=1e-3)).name}
    for folder in (single(done[0]), folds(done[0])):
        assert f"{folder.name}: trained before" in outcome.text
    assert [path.name for path in new.glob("*.pth")] == ["checkpoint_latest.pth"]
    names = {each["name"] for each in read(done[0] / "multi_summary.json")["ranking"]}
    assert names == {single(done[0]).name, folds(done[0]).name, new.name}
    again = train_clip.main(parse(TrainClip, [*words[:-1], str(done[0].parent / "mended.json")], aliases=GUIDE))
    assert set(again.data["configurations"]) == names


def test_an_interrupted_night_has_a_summary_and_a_longer_list_goes_on_with_it(images, tmp_path):
    quick, endless = SMALL | {"learning_rate": 3e-3}, SMALL | {"epochs": 100_000}
    path, output = tmp_path / "configs.json", tmp_path / "out"
    words = ["--data-dir", images, "--storage", tmp_path, "--output-dir", output, "--multi-config", "--config-file", path]

    def train(entries: list[dict], until: Callable[[], bool]) -> None:
        """Interrupted as soon as `until` holds, as by Ctrl-C."""
        path.write_text(json.dumps(entries), "utf-8")

        def interrupt() -> None:
            while not until():
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt, daemon=True)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            train_clip.main(parse(TrainClip, [str(word) for word in words], aliases=GUIDE))

    def latest(**settings: object) -> dict:
        try:
            return checkpoint.read(of_entry(output, **settings) / "checkpoint_latest.pth")
        except (ValueError, OSError, UserError):
            return {"epoch": 0}

    def ranked() -> int:
        path = output / "multi_summary.json"
        return len(read(path)["ranking"]) if path.is_file() else 0

    train([quick, endless], lambda: ranked() == 1 and latest(epochs=100_000)["epoch"] > 0)
    ended = of_entry(output, learning_rate=3e-3)
    assert set(read(ended / "result.json")["figures"]) >= {"best_epoch", "patients", "confusion"}
    trained, before = ended / "checkpoint_latest.pth", latest(epochs=100_000)
    at = trained.stat().st_mtime_ns
    longer = [SMALL | {"learning_rate": 1e-3}, endless, quick]
    train(longer, lambda: ranked() == 2 and latest(epochs=100_000)["epoch"] > before["epoch"])
    assert trained.stat().st_mtime_ns == at
    assert latest(epochs=100_000)["history"]["train_loss"][: before["epoch"]] == before["history"]["train_loss"]


def test_a_run_goes_on_from_a_file_into_another_folder_and_its_best_stays_until_a_better_one(images, done, tmp_path):
    before = Path(shutil.copytree(single(done[0]), tmp_path / "before"))
    for file in before.glob("*.pth"):
        content = checkpoint.read(file)
        content["progress"]["best"] |= {"value": 101.0, "mark": 101.0}  # no later epoch can be better
        checkpoint.write(file, content)
    words = [
        *("--data-dir", images, "--storage", done[0].parent, "--output-dir", tmp_path / "longer", "--epochs", 3),
        *("--image-encoder", "tiny", "--text-encoder", "characters", "--embed-dim", 16, "--img-size", 32, "--batch-size", 8),
        *("--augmentation", "none", "--no-amp", "--n-splits", 2, "--resume-from", before / "checkpoint_latest.pth"),
    ]
    outcome = train_clip.main(parse(TrainClip, [str(word) for word in words], aliases=GUIDE))
    assert outcome.data["epochs"] == 3
    history, shorter = read(tmp_path / "longer" / "history.json"), read(before / "history.json")
    assert history.pop("about") == shorter.pop("about")
    assert {name: values[:2] for name, values in history.items()} == shorter
    latest = torch.load(tmp_path / "longer" / "checkpoint_latest.pth", weights_only=True)
    assert latest["epoch"] == len(latest["history"]["val_acc"]) == 3
    best, old = (checkpoint.read(folder / "checkpoint_best.pth") for folder in (tmp_path / "longer", before))
    assert best["epoch"] == old["epoch"]
    assert torch.equal(best["predictions"]["logits"], old["predictions"]["logits"])
    assert sum(map(sum, outcome.data["confusion"])) == len(old["predictions"]["row"]), "the best so far is judged"
    assert (tmp_path / "longer" / "confusion_matrix.png").is_file()
    assert f"python jobs/promote.py {outcome.data['run_id']}" in outcome.text


def test_beginning_again_does_not_remove_the_file_that_it_begins_with(images, words, done):
    file = single(done[0]) / "checkpoint_latest.pth"
    begin = [*("--data-dir", images, "--storage", done[0].parent, "--image-encoder", "tiny", "--text-encoder", "characters")]
    begin += [*("--embed-dim", 16, "--img-size", 32, "--resume", "never", "--resume-from", file)]
    with pytest.raises(UserError, match="copy it out of"):
        train_clip.main(parse(TrainClip, [str(word) for word in begin], aliases=GUIDE))
    assert file.exists()


def test_a_file_that_does_not_fit_is_refused_by_the_flags_that_differ(images, done):
    file = single(done[0]) / "checkpoint_latest.pth"
    words = ["--data-dir", images, "--storage", done[0].parent, "--image-encoder", "tiny", "--text-encoder", "characters"]
    words += ["--embed-dim", 16, "--img-size", 32, "--resume-from", file, "--epochs", 3, "--dry-run"]
    words += ["--n-splits", 3, "--split", "60/40/0", "--patient-regex", r"(.+)\.png", "--model.freeze_text", "true"]
    with pytest.raises(UserError) as told:
        train_clip.main(parse(TrainClip, [str(word) for word in words], aliases=GUIDE))
    flags = ("--model.freeze_text was False", "--n-splits was 2", "--split was 80/20/0", "--patient-regex was None")
    assert all(flag in str(told.value) for flag in flags), told.value


def test_images_are_predicted_from_a_file_with_a_line_each(images, words, done, tmp_path):
    model = single(done[0]) / "checkpoint_best.pth"
    arguments = ["--model", model, "--input", images, "--out", tmp_path / "out.csv", "--storage", tmp_path]
    options = parse(predict_clip.PredictClip, [str(word) for word in arguments], aliases=predict_clip.GUIDE)
    predict_clip.main(options)
    lines = pd.read_csv(tmp_path / "out.csv")
    assert lines["patient_id"].tolist() == sorted(f"{name}/{number:02d}.png" for name in CLASSES for number in range(12))
    assert lines[["p_正常", "p_肺炎"]].sum(axis=1).to_numpy() == pytest.approx(1)


def test_pictures_without_labels_are_predicted_however_they_come(images, done, tmp_path):
    """A folder of pictures, deeper folders, one picture, a CSV: as the job's help and docs/clip.md say."""
    (tmp_path / "flat" / "deep" / "er").mkdir(parents=True)
    picture = next((images / CLASSES[0]).glob("*.png")).read_bytes()
    for place in ("flat/a.png", "flat/deep/er/b.png"):
        (tmp_path / place).write_bytes(picture)
    (tmp_path / "flat.csv").write_text("image,patient_id\nflat/a.png,P7\n")
    model = single(done[0]) / "checkpoint_best.pth"
    for given, patients in (("flat", ["a.png", "deep/er/b.png"]), ("flat/a.png", ["a.png"]), ("flat.csv", ["P7"])):
        arguments = ["--model", model, "--input", tmp_path / given, "--out", tmp_path / "out.csv", "--storage", tmp_path]
        predict_clip.main(parse(predict_clip.PredictClip, [str(word) for word in arguments], aliases=predict_clip.GUIDE))
        assert pd.read_csv(tmp_path / "out.csv")["patient_id"].tolist() == patients


def test_without_validation_the_last_epoch_is_the_file_that_is_kept_and_gone_on_from(images, tmp_path):
    words = ["--data-dir", images, "--storage", tmp_path, "--output-dir", tmp_path / "out", "--split", "100/0/0"]
    words += ["--image-encoder", "tiny", "--text-encoder", "characters", "--embed-dim", 16, "--img-size", 32]
    options = [str(word) for word in [*words, "--epochs", 1]]
    told = train_clip.main(parse(TrainClip, options, aliases=GUIDE))
    assert "1 epochs, of which the last is kept" in told.text and "not registered" in told.text
    first = checkpoint.read(tmp_path / "out" / "checkpoint_best.pth")
    assert first["history"]["val_loss"] == [] and len(first["history"]["train_loss"]) == 1

    again = [*options[:-1], "3", "--resume-from", str(tmp_path / "out" / "checkpoint_best.pth"), "--name", "more"]
    train_clip.main(parse(TrainClip, again, aliases=GUIDE))
    best = checkpoint.read(tmp_path / "out" / "checkpoint_best.pth")
    assert best["epoch"] == 3 and best["history"]["train_loss"][0] == first["history"]["train_loss"][0]
