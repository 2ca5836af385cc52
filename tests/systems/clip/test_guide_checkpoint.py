"""A run's state as one ``.pth`` file: it holds what the guide says, nothing executable, and training goes on from it."""

import dataclasses
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import write_prepared

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

from machine import process_group_of_one

from raymed.data.image import ImageSettings
from raymed.data.micro_batches import Division
from raymed.data.plan import SliceSettings
from raymed.errors import CommonError, UserError
from raymed.evaluation.patients import softmax
from raymed.evaluation.predict import predict_rows
from raymed.models.settings import ClipModelSettings
from raymed.recipes.recipe import TrainingPass
from raymed.storage.folder import Folder
from raymed.storage.seal import check_seal
from raymed.systems.clip import checkpoint
from raymed.systems.clip.checkpoint import BEST, LATEST
from raymed.systems.clip.class_texts import class_texts
from raymed.systems.clip.judged import Judged
from raymed.systems.clip.model import open_classifier
from raymed.systems.clip.options import TrainClip
from raymed.systems.clip.output import HISTORY, OutputWriter, RunOutput
from raymed.systems.clip.recipe import ClipRecipe
from raymed.systems.clip.settings import ClipAugmentSettings, ClipLossSettings
from raymed.tracking.tracker import Tracker
from raymed.training.best import Best
from raymed.training.checkpoint import Progress, fetch, fetch_newest, seal
from raymed.training.engine import Engine, TrainSettings
from raymed.training.loop import SAVED
from raymed.training.spec import RunSpec
from raymed.training.state import TrainingState, read_state

TRAIN = TrainSettings(epochs=3, global_batch=16, micro_batch=16, lr=3e-3, warmup=0.0, final_lr=0.0, monitor="val_acc")
CPU = torch.device("cpu")
GUIDE_KEYS = {
    *("epoch", "model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "train_loss", "train_acc", "val_loss"),
    *("val_acc", "best_val_acc", "best_val_loss", "config", "class_to_idx", "class_texts", "history"),
}
CONFIG = {
    "image_encoder": "tiny",
    "text_encoder": "characters",
    "embed_dim": 16,
    "learning_rate": 3e-3,
    "use_cv": False,
    "fold": None,
    "early_stopping_monitor": "val_acc",
    "image": dataclasses.asdict(ImageSettings(size=35)),
    "train": dataclasses.asdict(TRAIN),
    "slices": dataclasses.asdict(SliceSettings(choice="all")),
    "random_state": 42,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("clip") / "data", size=35)


@pytest.fixture(scope="module")
def spec(prepared, tmp_path_factory):
    texts = class_texts(prepared.labels.names, "a picture of {class_name}")
    model = ClipModelSettings("tiny", None, "characters", 16)
    recipe = ClipRecipe.for_data(prepared.labels, 32, texts, model)
    storage = str(tmp_path_factory.mktemp("runs"))
    return RunSpec("run", storage, prepared.folder.uri, recipe, TRAIN, SliceSettings(choice="all"), seed=42)


@pytest.fixture(scope="module")
def group():
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LOCAL_RANK", "0")
        with process_group_of_one():
            yield


def new_engine(spec, prepared) -> Engine:
    return Engine(spec.recipe, spec.train, len(spec.plan(prepared, 0).batches) * spec.train.epochs, spec.seed, CPU)


def train_epoch(engine: Engine, spec, prepared, epoch: int) -> list[float]:
    losses = []
    batches = spec.plan(prepared, epoch).batches
    for place, batch in enumerate(batches):
        shares = [
            (
                spec.recipe.encode(
                    prepared.read([row for pack in micro.packs for row in pack]), TrainingPass(spec.seed, epoch)
                ),
                micro,
            )
            for micro in Division(spec.train.micro_batch).share(batch, 0)
        ]
        engine.step(shares, epoch * len(batches) + place)
        losses.append(engine.read()[-1].sums["loss/loss"][0])
    return losses


@pytest.fixture(scope="module")
def trained(group, spec, prepared, tmp_path_factory):
    """An engine after two of three epochs, its checkpoint, and the losses of the third."""
    engine = new_engine(spec, prepared)
    for epoch in range(2):
        train_epoch(engine, spec, prepared, epoch)
    folder = tmp_path_factory.mktemp("checkpoint")
    engine.save(folder)()
    epochs = [
        {"epoch": 1, "train_loss": 1.4, "train_accuracy": 0.25, "val_loss": 1.3, "val_acc": 50.0},
        {"epoch": 2, "train_loss": 1.2, "train_accuracy": 0.5, "val_loss": 1.35, "val_acc": 75.0, "finished": 1.0},
    ]
    steps = 2 * len(spec.plan(prepared, 0).batches)
    Progress(epoch=2, global_step=steps, best=Best(2, 75.0, 75.0, 0), history=epochs).write(folder)
    seal(folder, 0, 1)
    with engine.evaluating():
        rows = prepared.rows("val")
        logits = engine.predict(spec.recipe.encode(prepared.read(rows), None))["logits"]
    return folder, logits, train_epoch(engine, spec, prepared, 2)


@pytest.fixture(scope="module")
def output(trained, spec, prepared, tmp_path_factory):
    config = CONFIG | {"data_digest": prepared.digest}
    output = RunOutput(tmp_path_factory.mktemp("output"), spec, config, True)
    output.update(str(trained[0]))
    return output


@pytest.mark.slow
def test_without_the_best_file_only_the_latest_is_written(trained, spec, output, tmp_path):
    without = RunOutput(tmp_path / "output", spec, output.config, save_best=False)
    without.update(str(trained[0]))
    without.finish(str(trained[0]))
    assert (without.folder / LATEST).is_file() and not (without.folder / BEST).exists()
    assert without.history() == output.history()


@pytest.mark.slow
def test_the_files_hold_what_the_guide_says(output, spec):
    for name in (LATEST, BEST):
        content = torch.load(output.folder / name, weights_only=True)
        assert content.keys() >= GUIDE_KEYS
        assert (content["epoch"], content["best_val_acc"], content["best_val_loss"]) == (2, 75.0, 1.3)
        assert content["class_to_idx"] == {name: place for place, name in enumerate(spec.recipe.names)}
        assert content["class_texts"]["viral"] == ["a picture of viral"]
        assert content["history"] == output.history()
    assert output.history() == {
        "train_loss": [1.4, 1.2],
        "train_acc": [25.0, 50.0],
        "val_loss": [1.3, 1.35],
        "val_acc": [50.0, 75.0],
    }


@pytest.mark.slow
def test_the_best_figures_stay_after_a_worse_epoch(trained, spec):
    """The file of a later epoch says what the best one gave, and what its own gave."""
    progress = Progress.read(trained[0])
    worse = {"epoch": 3, "train_loss": 1.1, "train_accuracy": 0.75, "val_loss": 1.5, "val_acc": 60.0, "finished": 0.0}
    progress.epoch, progress.history = 3, [*progress.history, worse]
    content = checkpoint.pack(progress, read_state(trained[0]), spec.recipe, CONFIG, {})
    assert (content["val_acc"], content["best_val_acc"]) == (60.0, 75.0)
    assert (content["val_loss"], content["best_val_loss"]) == (1.5, 1.3)


@pytest.mark.slow
def test_an_epoch_that_is_not_the_best_leaves_the_best_file_alone(output, trained, spec, tmp_path):
    later = Progress.read(trained[0])
    later.epoch, later.history = 3, [*later.history, later.history[0]]
    for path in trained[0].rglob("*"):
        if path.is_file() and path.name != "progress.json":
            target = tmp_path / "later" / path.relative_to(trained[0])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    later.write(tmp_path / "later")
    other = dataclasses.replace(output, folder=tmp_path / "output")
    for checkpoint_ in (trained[0], tmp_path / "later", trained[0]):  # the last one is out of date and must change nothing
        other.update(str(checkpoint_))
    assert torch.load(other.folder / BEST, weights_only=True)["epoch"] == 2
    assert torch.load(other.folder / LATEST, weights_only=True)["epoch"] == 3
    assert len(other.history()["val_acc"]) == 3
    assert not [path for path in other.folder.iterdir() if path.name not in (BEST, LATEST, HISTORY)], "a draft was left"


@pytest.mark.slow
def test_files_of_an_earlier_run_with_other_settings_are_replaced(output, trained):
    other = dataclasses.replace(output, config=output.config | {"learning_rate": 1.0})
    other.update(str(trained[0]))
    assert torch.load(other.folder / LATEST, weights_only=True)["config"]["learning_rate"] == 1.0
    output.update(str(trained[0]))


@pytest.mark.slow
def test_files_of_an_earlier_run_with_the_same_settings_are_replaced(output, trained, tmp_path):
    """Begun anew, or from another file, it has another history: its epochs must not be taken for this run's."""
    content = checkpoint.read(output.folder / LATEST)
    content |= {"epoch": 100, "history": {name: [9.0, 9.0] for name in content["history"]}}
    other = dataclasses.replace(output, folder=tmp_path)
    checkpoint.write(tmp_path / LATEST, content)
    other.update(str(trained[0]))
    assert torch.load(tmp_path / LATEST, weights_only=True)["epoch"] == 2
    assert other.history() == output.history()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"fold": 1}, "--fold was None, and is 1"),
        (
            {"train": dataclasses.replace(TRAIN, patience_monitor="val_loss")},
            "--early-stopping-monitor was 'val_acc', and is 'val_loss'",
        ),
        ({"train": dataclasses.replace(TRAIN, monitor="val_loss")}, "--train.monitor was 'val_acc', and is 'val_loss'"),
    ],
)
def test_a_file_of_another_fold_or_measure_is_refused(output, spec, changes, named):
    with pytest.raises(UserError, match=named):
        checkpoint.read_for(output.folder / LATEST, dataclasses.replace(spec, **changes))


@pytest.mark.slow
def test_a_file_is_gone_on_from_with_the_data_that_its_run_was_opened_with(output, spec, tmp_path):
    """Others may be prepared there meanwhile: steps would be counted by their patients."""
    others = dataclasses.replace(spec, storage=str(tmp_path), data_digest="other")
    for begin in (checkpoint.start_from, checkpoint.take_up):
        with pytest.raises(CommonError, match="was prepared again"):
            begin(output.folder / LATEST, others)
    content, progress = checkpoint.read_for(output.folder / LATEST, spec)
    with pytest.raises(CommonError, match="was prepared again"):
        checkpoint._start(output.folder / LATEST, content, progress, others)


@pytest.mark.slow
def test_training_goes_on_from_the_file_as_if_it_had_not_stopped(output, trained, spec, prepared, tmp_path):
    again = dataclasses.replace(spec, storage=str(tmp_path))
    checkpoint.start_from(output.folder / LATEST, again)
    newest = fetch_newest(again.folder, tmp_path / "local")
    progress = Progress.read(newest)
    assert (progress.epoch, progress.best, len(progress.history)) == (2, Best(2, 75.0, 75.0, 0), 2)
    assert progress.history[-1]["finished"] == 0, "the search would end the run at its first report"
    engine = new_engine(again, prepared)
    engine.load(newest)
    assert train_epoch(engine, again, prepared, 2) == pytest.approx(trained[2], rel=1e-6)


@pytest.mark.slow
def test_more_epochs_and_another_rate_follow_the_new_run_s_schedule(output, spec, prepared, tmp_path):
    longer = dataclasses.replace(spec, storage=str(tmp_path), train=dataclasses.replace(TRAIN, epochs=4, lr=1e-3))
    checkpoint.start_from(output.folder / LATEST, longer)
    engine = new_engine(longer, prepared)
    engine.load(fetch_newest(longer.folder, tmp_path / "local"))
    assert engine.lr == pytest.approx(1e-3 / 2), "half of a cosine over four epochs"


@pytest.fixture
def files(spec, prepared, tmp_path) -> Path:
    """Both files of a run whose first of two epochs was the best."""
    module = spec.recipe.build()
    moments = {name: torch.zeros_like(value) for name, value in module.named_parameters() if value.requires_grad}
    rows, draw = spec.rows(prepared, "val"), np.random.default_rng(0)
    epochs = [
        {"epoch": epoch, "train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "val_acc": accuracy, "finished": 0.0}
        for epoch, accuracy in ((1, 75.0), (2, 50.0))
    ]
    for epoch, name in ((1, BEST), (2, LATEST)):
        with torch.no_grad():
            module.image_projection[1].weight.fill_(float(epoch))
        weights = {key: value.clone() for key, value in module.state_dict().items()}
        state = TrainingState(weights, moments, moments, {}, epoch, {"base_lrs": [3e-3]})
        progress = Progress(epoch, 0, epoch, Best(1, 75.0, 75.0, epoch - 1), "step-1", history=epochs[:epoch])
        progress.origin = {"generation": "one", "train": {"epochs": 2}}
        predictions = {"logits": draw.normal(size=(len(rows), 4)).astype(np.float32), "row": rows}
        content = checkpoint.pack(progress, state, spec.recipe, CONFIG | {"data_digest": prepared.digest}, predictions)
        checkpoint.write(tmp_path / "files" / name, content)
    return tmp_path / "files"


@pytest.mark.parametrize("name", [BEST, LATEST])
def test_the_best_epoch_so_far_is_the_new_run_s_best_until_a_better_one_comes(files, spec, prepared, tmp_path, name):
    """After a resume without an improvement it is still judged, offered and drawn."""
    again = dataclasses.replace(spec, storage=str(tmp_path / "runs"))
    checkpoint.start_from(files / name, again)
    progress = Progress.read(fetch_newest(again.folder, tmp_path / "local"))
    assert progress.epoch == {BEST: 1, LATEST: 2}[name]
    best = fetch(again.folder, progress.model, tmp_path / "local")
    assert Progress.read(best).epoch == 1
    check_seal(best / "model")
    assert again.recipe.load(best / "model").image_projection[1].weight.mean() == 1
    judged = Judged.of(prepared, [str(best)], 0)
    patients = prepared.columns(spec.rows(prepared, "val"), ["patient"])["patient"]
    assert sum(map(sum, judged.together.confusion)) == len(set(patients))
    output = RunOutput(tmp_path / "output", again, CONFIG | {"data_digest": prepared.digest}, True)
    output.finish(str(best))
    assert checkpoint.read(output.folder / BEST)["epoch"] == 1
    assert checkpoint.read(output.folder / LATEST)["epoch"] == progress.epoch


def test_a_run_that_starts_from_a_file_is_not_bound_to_the_file_s_search(files, spec, tmp_path):
    again = dataclasses.replace(spec, storage=str(tmp_path / "runs"), generation="two")
    checkpoint.start_from(files / LATEST, again)
    Progress.read(fetch_newest(again.folder, tmp_path / "local")).check_origin(again.origin(), "the file's")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train": dataclasses.replace(TRAIN, global_batch=8)}, "--train.global_batch was 16, and is 8"),
        ({"sampling": SliceSettings(per_patient=2)}, "--slices.choice was all, and is uniform"),
        ({"recipe": {"loss": ClipLossSettings("clip")}}, "--loss.kind was class, and is clip"),
        ({"recipe": {"augment": ClipAugmentSettings("none")}}, "--augment.preset was standard, and is none"),
        ({"recipe": {"texts": (("n",), ("b",), ("v",), ("p",))}}, "the text of viral was a picture of viral, and is v"),
    ],
)
def test_what_was_learned_otherwise_is_named_and_needs_to_be_wanted(files, spec, tmp_path, caplog, changes, named):
    recipe = dataclasses.replace(spec.recipe, **changes.pop("recipe", {}))
    other = dataclasses.replace(spec, recipe=recipe, storage=str(tmp_path / "runs"), **changes)
    with pytest.raises(UserError, match=f"{named}.*--force"):
        checkpoint.start_from(files / LATEST, other)
    checkpoint.start_from(files / LATEST, other, force=True)
    assert named in caplog.text and fetch_newest(other.folder, tmp_path / "local") is not None


def test_other_pictures_are_told_by_the_flag_that_says_them_and_cannot_be_forced(files, spec):
    larger = dataclasses.replace(spec, recipe=dataclasses.replace(spec.recipe, size=64), seed=1)
    with pytest.raises(UserError, match="--img-size was 32, and is 64; --random-state was 42, and is 1"):
        checkpoint.read_for(files / LATEST, larger, force=True)


def test_the_texts_of_the_file_are_used_where_none_are_given(files):
    assert checkpoint.stored_texts(files / LATEST)["viral"] == ["a picture of viral"]
    given = TrainClip(resume_from=str(files / LATEST), text_template="{class_name}")
    assert given.says_texts and not TrainClip(resume_from=str(files / LATEST)).says_texts


def test_a_best_epoch_that_is_nowhere_is_told(files, spec, tmp_path, caplog):
    again = dataclasses.replace(spec, storage=str(tmp_path / "runs"))
    (files / BEST).unlink()
    checkpoint.start_from(files / LATEST, again)
    assert Progress.read(fetch_newest(again.folder, tmp_path / "local")).model == ""
    assert "the best epoch so far, 1, is not in" in caplog.text


def test_a_run_of_another_job_is_taken_up_where_its_best_epoch_is_there_and_begins_anew_where_it_is_gone(
    files, spec, tmp_path
):
    """It may have come to its end: without the best epoch nothing of it could ever be judged."""
    kept, gone = (dataclasses.replace(spec, storage=str(tmp_path / name)) for name in ("kept", "gone"))
    checkpoint.take_up(files / LATEST, kept)
    (files / BEST).unlink()
    checkpoint.take_up(files / LATEST, gone)
    assert Progress.read(fetch_newest(kept.folder, tmp_path / "local")).model
    assert fetch_newest(gone.folder, tmp_path / "local") is None


@pytest.mark.slow
def test_a_run_that_is_further_than_the_file_keeps_its_own_checkpoint(output, spec, tmp_path):
    again = dataclasses.replace(spec, storage=str(tmp_path))
    checkpoint.start_from(output.folder / LATEST, again)
    before = again.folder.names()
    checkpoint.start_from(output.folder / LATEST, again)
    assert again.folder.names() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"names": ("a", "b", "c", "d")}, r"normal, bacterial, viral, pneumocystis.*a, b, c, d"),
        ({"model": ClipModelSettings("tiny", None, "characters", 32)}, "--embed-dim was 16, and is 32"),
        ({"model": ClipModelSettings("resnet18", None, "characters", 16)}, "--image-encoder was 'tiny', and is 'resnet18'"),
    ],
)
def test_a_file_of_other_classes_or_towers_is_refused_with_both_named(output, spec, changes, named):
    other = dataclasses.replace(spec, recipe=dataclasses.replace(spec.recipe, **changes))
    with pytest.raises(UserError, match=named):
        checkpoint.start_from(output.folder / LATEST, other)


@pytest.mark.slow
def test_a_file_that_leaves_nothing_to_train_is_an_error(output, spec, tmp_path):
    done = dataclasses.replace(spec, train=dataclasses.replace(TRAIN, epochs=2))
    with pytest.raises(UserError, match="2 epochs already"):
        checkpoint.start_from(output.folder / LATEST, done)
    content = checkpoint.read(output.folder / LATEST)
    content["progress"]["best"]["waited"] = 5
    checkpoint.write(tmp_path / "waited.pth", content)
    patient = dataclasses.replace(spec, train=dataclasses.replace(TRAIN, patience=5))
    with pytest.raises(UserError, match="waited 5 epochs"):
        checkpoint.start_from(tmp_path / "waited.pth", patient)


@pytest.fixture
def cross_validation(files, tmp_path) -> Path:
    """The output folder of two folds, whose networks differ."""
    folder = tmp_path / "cv"
    for number, name in enumerate((BEST, LATEST), start=1):
        content = checkpoint.read(files / name)
        checkpoint.write(folder / f"fold_{number}" / BEST, content)
    (folder / "config.json").write_text('{"n_splits": 2}')
    return folder


def test_a_cross_validation_predicts_with_the_mean_of_its_folds(cross_validation, prepared, tmp_path):
    tracker = Tracker.open(f"sqlite:///{tmp_path}/mlflow.db", "raymed-clip")
    names = (str(cross_validation), *(str(cross_validation / f"fold_{number}" / BEST) for number in (1, 2)))
    rows = prepared.rows("val")
    together, *each = (softmax(predict_rows(open_classifier(name, tracker).open(), prepared, rows)[0]) for name in names)
    assert not np.allclose(*each)
    assert together == pytest.approx(np.mean(each, axis=0), abs=1e-6)


def test_a_cross_validation_that_lacks_a_fold_does_not_pass_for_a_whole_one(cross_validation, tmp_path):
    (cross_validation / "fold_2" / BEST).unlink()
    tracker = Tracker.open(f"sqlite:///{tmp_path}/mlflow.db", "raymed-clip")
    with pytest.raises(UserError, match=r"lacks fold_2/checkpoint_best\.pth"):
        open_classifier(str(cross_validation), tracker)


class Attack:
    def __reduce__(self):
        return (Path.touch, (Path("attacked"),))


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"epoch": Attack()}, tmp_path / "attack.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Attack()))
    torch.save({"epoch": 1}, tmp_path / "other.pth")
    for name, says in {"attack.pth": "nothing but tensors", "pickle.pth": "nothing but", "other.pth": "it lacks"}.items():
        with pytest.raises(UserError, match=says):
            checkpoint.read(tmp_path / name)
    assert not (tmp_path / "attacked").exists()
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.read(tmp_path / "none.pth")


@pytest.mark.slow
def test_the_file_predicts_what_the_run_did_and_answers_to_other_texts(output, trained, prepared, tmp_path):
    tracker = Tracker.open(f"sqlite:///{tmp_path}/mlflow.db", "raymed-clip")
    classifier = open_classifier(str(output.folder / BEST), tracker)
    logits, _ = predict_rows(classifier.open(), prepared, prepared.rows("val"))
    assert logits == pytest.approx(trained[1], abs=1e-4)
    asked = open_classifier(str(output.folder / BEST), tracker, {"viral": "a picture of viral", "else": ["a", "b"]})
    assert asked.inference.labels.names == ["else", "viral"]
    other, _ = predict_rows(asked.open(), prepared, prepared.rows("val"))
    assert other[:, 1] == pytest.approx(logits[:, 2], abs=1e-4), "the same text gives the same logit beside other classes"


def test_files_are_brought_up_to_date_after_each_epoch_not_only_at_the_end(tmp_path):
    """An interrupted run left none, since raymed saves checkpoints itself: Ray Train reported none any more."""
    asked = []
    update = SimpleNamespace(remote=lambda *words: asked.append(words))
    writer = OutputWriter.__new__(OutputWriter)  # without Ray
    writer._outputs, writer._process, writer._waiting = {"run": "output"}, SimpleNamespace(update=update), []
    spec = SimpleNamespace(name="run", folder=Folder.at(tmp_path))
    writer.watch(spec, "start", {})
    writer.watch(spec, "epoch", {"val_loss": 0.5})  # told again by a run that goes on
    assert not asked
    writer.watch(spec, "epoch", {"val_loss": 0.5, SAVED: "step-00000005-000001-abc"})
    assert asked == [("output", f"{tmp_path}/step-00000005-000001-abc")]
