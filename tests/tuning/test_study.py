"""The study is the one truth about a search: what it records must survive its process."""

from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from ray.exceptions import ActorDiedError
from ray.tune.search import Searcher

from raymed import clock
from raymed.errors import UserError
from raymed.job.library_log import keep_traceback
from raymed.recipes.metric import VAL_LOSS, Metric
from raymed.storage.folder import Folder
from raymed.training.fit import Resources
from raymed.training.loop import CAUSE, COMMON, FAILED, HISTORY
from raymed.training.stall import STALLED
from raymed.tuning.budget import Budget
from raymed.tuning.draw import DRAWN_AT_RANDOM, distribution
from raymed.tuning.journal import Journal
from raymed.tuning.machine_wait import MachineWait
from raymed.tuning.ray_tune import StudyScheduler, StudySearcher
from raymed.tuning.space import Dimension
from raymed.tuning.study import BEST_POINT, CHECKPOINT, JUDGING, REASON, SEARCHING, SECONDS, Halving, Study
from raymed.tuning.timetable import Timetable
from raymed.tuning.trial_epochs import curve, decisions

SPACE = {"x": Dimension(0.0, 1.0), "y": Dimension(choices=("a", "b"))}
THERE = SimpleNamespace(is_away=False)  # the storage
DEFAULTS = {"x": 0.25, "y": "b"}


ACCURACY = Metric("accuracy", "", "max", "{:.1%}", chooses_epoch=True, chooses_trial=True)


def open_study(folder, space=SPACE, objective=VAL_LOSS, warm_up=0, seed=7, begun_with=None):
    journal = Journal(folder / "study.journal", Folder.at(folder))
    return Study(
        *(journal, "search", space, [DEFAULTS], Halving(1, 3)),
        seed=seed,
        objective=objective,
        warm_up=warm_up,
        begun_with=begun_with,
    )


def timetable(budget: Budget) -> Timetable:
    return Timetable(budget, budget.seconds_left, epochs=9)


def result(loss: float, epoch: int) -> dict[str, float]:
    return {"val_loss": loss, "best_val_loss": loss, "best_epoch": epoch, "seconds": 1.0, "model": f"epoch-{epoch}"}


def test_the_default_settings_are_the_first_trial(tmp_path):
    assert open_study(tmp_path).ask(Budget(5)) == (0, DEFAULTS)


def test_suggestions_do_not_depend_on_the_process_that_asks(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    study = open_study(tmp_path / "one")
    together = [study.ask(Budget(6)) for _ in range(6)]
    apart = [open_study(tmp_path / "two").ask(Budget(6)) for _ in range(1)]
    for _ in range(5):
        opened = open_study(tmp_path / "two")
        opened._in_flight.clear()  # they are still running elsewhere
        apart.append(opened.ask(Budget(6)))
    assert together == apart


def test_another_seed_draws_other_settings(tmp_path):
    drawn = []
    for seed in (7, 8):
        (tmp_path / str(seed)).mkdir()
        study = open_study(tmp_path / str(seed), seed=seed)
        drawn.append([study.ask(Budget(4)) for _ in range(4)])
    assert drawn[0][0] == drawn[1][0] == (0, DEFAULTS)
    assert all(one != other for one, other in zip(drawn[0][1:], drawn[1][1:], strict=True))


def test_a_search_goes_on_with_the_data_and_weights_that_it_began_with_and_with_no_others(tmp_path):
    begun_with = {"data": {"data": "a1"}, "weights": {"encoder": "b1", "text": "c1"}}
    open_study(tmp_path, begun_with=begun_with)
    open_study(tmp_path, begun_with=begun_with)
    with pytest.raises(UserError, match="began with other pretrained weights: encoder was b1, and is b2 now"):
        open_study(tmp_path, begun_with=begun_with | {"weights": {"encoder": "b2", "text": "c1"}})


def test_a_search_goes_on_with_the_trial_that_was_under_way(tmp_path):
    study = open_study(tmp_path)
    number, params = study.ask(Budget(3))
    study.report(number, 1, result(0.9, 1))
    again = open_study(tmp_path)
    assert again.ask(Budget(3)) == (number, params)
    assert again.ask(Budget(3))[0] == number + 1
    assert again.best.user_attrs[CHECKPOINT] == "epoch-1"


def test_a_search_for_the_highest_keeps_the_highest_and_stops_the_others(tmp_path):
    """Also where a run that goes on reports an epoch again, whose decision was lost."""
    study, stopped = open_study(tmp_path, objective=ACCURACY), []
    for accuracy in (0.5, 0.7, 0.6):
        number, _ = study.ask(Budget(10))
        report = {"accuracy": accuracy, "best_accuracy": accuracy, "best_epoch": 1, "model": "m", "seconds": 1.0}
        stopped.append(study.report(number, 1, report | {"val_loss": 9.0}))
    assert stopped == [False, False, True]
    again = open_study(tmp_path, objective=ACCURACY)
    assert [again.report(number, 1, {}) for number in (1, 2)] == [False, True]
    assert (again.best.number, again.best_value(again.best)) == (1, 0.7)
    assert sorted(again.trials, key=again.rank)[0].number == 1
    assert again.study.direction.name == "MAXIMIZE"


def test_a_search_of_another_objective_under_the_same_name_is_refused(tmp_path):
    open_study(tmp_path)
    with pytest.raises(UserError, match=r"compares its trials by val_loss, not by accuracy\. Use another --name"):
        open_study(tmp_path, objective=ACCURACY)


def test_a_record_of_before_there_was_an_objective_is_one_of_val_loss_with_its_own_rungs(tmp_path):
    storage = optuna.storages.JournalStorage(Journal(tmp_path / "study.journal", Folder.at(tmp_path)))
    earlier = optuna.create_study(study_name="search", storage=storage)
    earlier.set_user_attr("space", {name: repr(distribution(dimension)) for name, dimension in SPACE.items()})
    earlier.enqueue_trial(DEFAULTS)
    with pytest.raises(UserError, match="compares its trials by val_loss"):
        open_study(tmp_path, objective=ACCURACY)
    again = open_study(tmp_path, warm_up=6)
    assert again.ask(Budget(3)) == (0, DEFAULTS)
    assert again.halving.first_rung == 1, "the rung that was asked for, as when it began"


def test_a_search_goes_on_whose_settings_were_called_otherwise_when_it_began(tmp_path):
    earlier = Study(
        Journal(tmp_path / "study.journal", Folder.at(tmp_path)),
        *("night", {"loss_settings.label_smoothing": Dimension(0.0, 0.2)}, [], Halving(1, 3), 7),
    )
    number, params = earlier.ask(Budget(3))
    again = Study(
        Journal(tmp_path / "study.journal", Folder.at(tmp_path)),
        *("night", {"loss.label_smoothing": Dimension(0.0, 0.2)}, [], Halving(1, 3), 7),
    )
    assert again.ask(Budget(3)) == (number, params), "it would go on with another setting than it began with"
    assert again.ask(Budget(3))[1].keys() == {"loss.label_smoothing"}


def test_halving_stops_the_worse_two_of_three_and_remembers_its_rungs(tmp_path):
    study, stopped = open_study(tmp_path), []
    for loss in (0.5, 0.6, 0.7):
        number, _ = study.ask(Budget(10))
        stopped.append(study.report(number, 1, result(loss, 1)))
        study.tell(number, TrialState.PRUNED if stopped[-1] else TrialState.COMPLETE)
    reopened = open_study(tmp_path)
    number, _ = reopened.ask(Budget(10))
    assert stopped == [False, True, True]
    assert reopened.report(number, 1, result(0.55, 1)), "the rungs of the lost process must count"


def test_halving_decides_again_at_three_times_the_first_rung_and_at_no_epoch_between(tmp_path):
    study, stopped = open_study(tmp_path), {}
    for trial, losses in enumerate([(0.5, 0.5, 0.5), (0.4, 0.9, 0.7), (0.3, 0.9, 0.6)]):
        number, _ = study.ask(Budget(10))
        for epoch, loss in enumerate(losses, 1):
            stopped[trial, epoch] = study.report(number, epoch, result(loss, epoch))
        study.tell(number, TrialState.COMPLETE)
    assert [place for place, stops in stopped.items() if stops] == [(1, 3), (2, 3)]


def test_no_trial_is_stopped_during_the_warm_up_and_a_search_that_goes_on_keeps_its_rungs(tmp_path):
    def rungs(folder, warm_up: int) -> list[bool]:
        study = open_study(folder, warm_up=warm_up)
        number, _ = study.ask(Budget(10))
        stopped = [study.report(number, epoch, result(0.5 + number / 10, epoch)) for epoch in range(1, 7)]
        study.tell(number, TrialState.COMPLETE)
        study.close()
        return stopped

    assert not any(rungs(tmp_path, 6)), "the best so far"
    assert rungs(tmp_path, 6) == [False] * 5 + [True]
    assert rungs(tmp_path, 0) == [False] * 5 + [True]


@pytest.mark.slow
def test_a_search_killed_after_any_entry_of_its_record_goes_on_with_the_same_trials_and_stops_the_same(tmp_path):
    """The record is cut after each of its lines in turn, as a kill at that moment leaves it."""

    def search(study: Study) -> list[tuple]:
        while asked := study.ask(Budget(4)):
            number, params = asked
            epochs = study.trial(number).intermediate_values
            for epoch in range(max(1, len(epochs)), 4):
                loss = params["x"] + (params["y"] == "a") - 0.1 * epoch
                halted = study.report(number, epoch, result(loss, epoch))
                if halted or epoch == 3:
                    study.tell(number, TrialState.PRUNED if halted else TrialState.COMPLETE)
                    break
        return [(trial.params, trial.state, trial.intermediate_values, curve(trial)) for trial in study.trials]

    (tmp_path / "whole").mkdir()
    whole = search(open_study(tmp_path / "whole"))
    lines = (tmp_path / "whole" / "study.journal").read_bytes().splitlines(keepends=True)
    assert {state for _, state, *_ in whole} == {TrialState.PRUNED, TrialState.COMPLETE}
    for cut in range(1, len(lines), 4):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "study.journal").write_bytes(b"".join(lines[:cut]))
        assert search(open_study(folder)) == whole, f"after {cut} of {len(lines)} entries"


def test_a_trial_put_in_line_that_was_killed_between_its_entries_has_its_settings_again(tmp_path):
    """By them its run is known, before it is taken up."""
    study = open_study(tmp_path)
    study.study.ask()  # and killed before what it was put in line with is written; or the write was torn
    (trial,) = open_study(tmp_path).trials
    assert trial.params == DEFAULTS
    assert open_study(tmp_path).ask(Budget(5)) == (0, DEFAULTS)


def test_an_epoch_whose_entries_were_cut_off_names_its_checkpoint_with_its_epoch(tmp_path):
    """The winner's page asked for an epoch that the record did not have."""
    (tmp_path / "whole").mkdir()
    study = open_study(tmp_path / "whole")
    number, _ = study.ask(Budget(1))
    before = len((tmp_path / "whole" / "study.journal").read_bytes().splitlines())
    study.report(number, 1, result(0.9, 1))
    lines = (tmp_path / "whole" / "study.journal").read_bytes().splitlines(keepends=True)
    for cut in range(before, len(lines) + 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "study.journal").write_bytes(b"".join(lines[:cut]))
        again = open_study(folder)
        again.ask(Budget(1))
        again.report(number, 1, result(0.9, 1))
        assert again.best.user_attrs[CHECKPOINT] == "epoch-1"
        assert again.best.user_attrs[BEST_POINT] == 1


@pytest.mark.parametrize("written", ["report", "rung"])
def test_an_epoch_reported_again_after_a_loss_is_decided_as_it_would_have_been(tmp_path, written):
    """The search died between writing an epoch, or its rung, and stopping the trial."""
    study = open_study(tmp_path)
    for loss in (0.5, 0.6):
        number, _ = study.ask(Budget(10))
        if loss == 0.5 or written == "rung":
            study.report(number, 1, result(loss, 1))
        else:
            study._trial(number).report(loss, 1)
        if loss == 0.5:
            study.tell(number, TrialState.COMPLETE)
    again = open_study(tmp_path)
    assert again.ask(Budget(10))[0] == number
    assert again.report(number, 1, result(0.6, 1)), "the second of two is stopped"
    assert not open_study(tmp_path).report(0, 1, result(0.5, 1)), "the first went on"
    assert again.trials[0].user_attrs[SECONDS] == 1.0, "its seconds count once"


def test_an_epochs_entry_is_as_long_after_a_hundred_epochs_as_after_one(tmp_path):
    """Each wrote the trial's whole curve, and all its decisions, anew."""
    study = open_study(tmp_path)
    number, _ = study.ask(Budget(1))
    record, sizes = tmp_path / "study.journal", []
    for epoch in range(1, 102):
        before = record.stat().st_size
        with study.together():
            study.report(number, epoch, result(1 / epoch, 1))
            study.decide(number, epoch, "")
        sizes.append(record.stat().st_size - before)
    assert sizes[-1] < 1.2 * sizes[4]  # numbers have more digits
    trial = open_study(tmp_path).trial(number)
    assert curve(trial) == {epoch: 1 / epoch for epoch in range(1, 102)}
    assert decisions(trial) == dict.fromkeys(range(1, 102), "")


def test_a_curve_that_an_earlier_raymed_wrote_goes_on(tmp_path):
    study = open_study(tmp_path)
    number, _ = study.ask(Budget(1))
    study._trial(number).set_user_attr("curve", {1: 0.9, 2: 0.8})
    study._trial(number).set_user_attr("decided", {"1": "", "2": ""})
    study.report(number, 3, result(0.7, 3))
    assert curve(open_study(tmp_path).trial(number)) == {1: 0.9, 2: 0.8, 3: 0.7}
    assert [study.decided(number, epoch) for epoch in (1, 2, 3)] == ["", "", None]


def no_wait():
    """Machines are there for every trial."""
    return MachineWait(Resources(1, 1, 1, gpus=0), lambda: False, "")


class Told:
    """What the scheduler tells runs: whether to stop after an epoch."""

    def __init__(self):
        self.give, self.stopped = self, {}

    def remote(self, name, epoch, stop):
        self.stopped[name, epoch] = stop


def test_a_run_that_goes_on_meets_the_decision_that_was_made(tmp_path):
    """Reported again after better trials came by, its rung would now stop it; and it trains on within the epoch, unasked."""
    study, told, budget = open_study(tmp_path), Told(), Budget(10)
    scheduler = StudyScheduler(
        study, timetable(budget), told, lambda *_: None, SimpleNamespace(told=False), THERE, no_wait()
    )

    def report(number, epoch, loss):
        trial = SimpleNamespace(config={"number": number, "spec": SimpleNamespace(name=f"trial-{number}")})
        scheduler.on_trial_result(None, trial, {"epoch": epoch, "finished": 0.0, **result(loss, epoch)})
        return told.stopped[f"trial-{number}", epoch]

    for _ in range(3):
        study.ask(budget)
    assert [report(number, 1, loss) for number, loss in enumerate((0.7, 0.5, 0.6))] == [False, False, True]
    for again in (study, open_study(tmp_path)):
        scheduler._study = again
        assert not report(0, 1, 0.7)
        assert again.trial(0).state == TrialState.RUNNING
    assert not report(0, 2, 0.65), "its next epoch is no rung, so it goes on"
    assert again.trial(0).intermediate_values == {1: 0.7, 2: 0.65}, "and is recorded as any other's"
    assert report(0, 3, 0.65) is False, "alone on the next rung, it goes on"
    assert report(2, 1, 0.6), "a trial that was stopped stays so"


def test_epochs_that_the_record_has_lost_are_filled_in_from_a_run_that_went_on_after_them(tmp_path):
    study, told, budget, seen = open_study(tmp_path), Told(), Budget(10), []
    scheduler = StudyScheduler(
        *(study, timetable(budget), told),
        lambda number, happened, result: seen.append((number, result.get("epoch"))),
        *(SimpleNamespace(told=False), THERE, no_wait()),
    )
    for _ in range(3):
        study.ask(budget)
    for number, loss in enumerate((0.5, 0.4)):
        study.report(number, 1, result(loss, 1))
        study.decide(number, 1, "")
    lost = [{"epoch": epoch, "finished": 0.0, **result(loss, epoch)} for epoch, loss in ((1, 0.9), (2, 0.8), (3, 0.7))]
    for each in lost:
        each.pop("model")
    foreign = {"epoch": 0.0, "train_loss": 1.0}
    trial = SimpleNamespace(config={"number": 2, "spec": SimpleNamespace(name="trial-2")})
    for _ in range(2):
        scheduler.on_trial_result(None, trial, {**lost[2], "model": "epoch-3", HISTORY: [foreign, *lost[:2]]})
    again = open_study(tmp_path).trial(2)
    assert list(curve(again).items()) == [(1, 0.9), (2, 0.8), (3, 0.7)]
    assert again.user_attrs[SECONDS] == 3.0, "each is counted once"
    assert decisions(again) == {1: "", 2: "", 3: ""}, "its rung would stop it, and it was not stopped"
    assert seen == [(2, 1), (2, 2), (2, 3), (2, 3)], "in their order"
    assert told.stopped == {("trial-2", 3): False}
    assert again.user_attrs[CHECKPOINT] == "epoch-3"


def test_a_run_that_is_tried_again_tells_and_counts_nothing_that_its_earlier_try_has_told(tmp_path):
    """Its hours, and what they cost, were counted twice, and each epoch's line was printed again."""
    study, seen = open_study(tmp_path, space={}), []
    scheduler = StudyScheduler(
        *(study, timetable(Budget(2)), Told()),
        lambda number, happened, result: seen.append((number, result.get("epoch"))),
        *(SimpleNamespace(told=False), THERE, no_wait()),
    )
    for _ in range(2):
        study.ask(Budget(2))
    told = [{"epoch": epoch, "finished": 0.0, **result(1 - 0.1 * epoch, epoch)} for epoch in (1, 2, 3)]
    for each in told[:2]:
        study.report(0, each["epoch"], each)
        study.decide(0, each["epoch"], "")
    again = SimpleNamespace(config={"number": 1, "spec": SimpleNamespace(name="trial-0")})
    scheduler.on_trial_result(None, again, {**told[2], HISTORY: told[:2]})
    assert list(curve(study.trial(1))) == [3] and seen == [(1, 3)]


def test_the_best_trial_has_the_lowest_loss_of_those_that_left_a_checkpoint(tmp_path):
    study = open_study(tmp_path)
    for loss, checkpoint in ((0.7, "a"), (0.5, "b"), (0.9, "c"), (0.1, None)):
        number, _ = study.ask(Budget(10))
        study.report(
            number, 1, {**result(loss, 1), "model": checkpoint} if checkpoint else {"val_loss": loss, "best_val_loss": loss}
        )
        study.tell(number, TrialState.FAIL if checkpoint == "b" else TrialState.COMPLETE)
    assert study.best.user_attrs[CHECKPOINT] == "b"


def test_each_way_of_ending_is_recorded_with_its_reason(tmp_path):
    study = open_study(tmp_path)
    for state, reason in ((TrialState.FAIL, "the loss is not finite"), (TrialState.PRUNED, "stopped")):
        number, _ = study.ask(Budget(10))
        study.tell(number, state, reason)
        study.tell(number, TrialState.COMPLETE)  # a second end changes nothing
    trials = open_study(tmp_path).trials
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.PRUNED]
    assert [trial.user_attrs[REASON] for trial in trials] == ["the loss is not finite", "stopped"]


def test_a_trial_without_a_finite_loss_fails_and_is_never_best(tmp_path):
    study = open_study(tmp_path)
    number, _ = study.ask(Budget(10))
    study.report(number, 1, result(float("nan"), 1))
    study.tell(number, TrialState.COMPLETE)
    assert study.trials[0].state == TrialState.FAIL
    assert study.best_value(study.trials[0]) == float("inf")


@pytest.mark.parametrize("budget", [Budget(0), Budget(9, deadline=1.0).begun(), Budget(9, epochs=1)])
def test_no_trial_starts_beyond_the_budget(tmp_path, budget):
    study = open_study(tmp_path)
    number, _ = study.ask(Budget(9))
    study.report(number, 2, result(0.5, 2))
    study.tell(number, TrialState.COMPLETE)
    assert study.ask(budget) is None


def test_another_space_under_the_same_name_is_refused(tmp_path):
    open_study(tmp_path)
    with pytest.raises(UserError, match="another --name"):
        open_study(tmp_path, space={"x": Dimension(0.0, 2.0)})


def test_an_epoch_trained_again_after_its_checkpoint_was_lost_names_the_new_one(tmp_path):
    """A power cut tears the checkpoint that the record names; the run goes on from the one before."""
    study = open_study(tmp_path)
    number, _ = study.ask(Budget(3))
    study.report(number, 1, result(0.9, 1))
    again = open_study(tmp_path)
    again.ask(Budget(3))
    again.report(number, 1, result(0.9, 1) | {"model": "epoch-1-again"})
    assert open_study(tmp_path).best.user_attrs[CHECKPOINT] == "epoch-1-again"


def test_a_full_storage_stops_the_search_and_its_trials_go_on_once_there_is_room(tmp_path):
    """Told by one of two trials, in the middle of the search; before, that one failed, and the next, and the next."""
    study = open_study(tmp_path)
    scheduler = StudyScheduler(
        study, timetable(Budget(9)), Told(), lambda *_: None, SimpleNamespace(told=False), THERE, no_wait()
    )
    trials = [SimpleNamespace(config={"number": study.ask(Budget(9))[0], "spec": None}) for _ in range(2)]
    study.report(0, 1, result(0.9, 1))
    scheduler.on_trial_result(None, trials[1], {FAILED: "no space left. Free space", COMMON: 1.0})
    for trial in trials:
        scheduler.on_trial_complete(None, trial, {})
    assert study.ask(Budget(9)) is None, "no other trial is begun, to fail as well"
    assert study.mistake == "no space left. Free space"
    again = open_study(tmp_path)
    assert [again.ask(Budget(9))[0] for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("alike", [True, False])
def test_a_mistake_of_the_first_listed_run_does_not_end_the_others(tmp_path, alike):
    """Weights that do not fit: of a search's trials all would meet them, of listed runs only those that name them."""
    study = open_study(tmp_path)
    interrupt = SimpleNamespace(told=False)
    scheduler = StudyScheduler(study, timetable(Budget(2)), Told(), lambda *_: None, interrupt, THERE, no_wait(), alike)
    trial = SimpleNamespace(config={"number": study.ask(Budget(2))[0], "spec": None})
    cause = "Traceback: where the weights were put in"
    scheduler.on_trial_result(None, trial, {FAILED: "the weights do not fit", CAUSE: cause, "mistake": 1.0})
    kept = keep_traceback("").read_text("utf-8")
    assert cause in kept, "the support bundle shows what a worker met, as Python tells it"
    assert study.mistake == ("the weights do not fit" if alike else "")
    assert (study.trial(0).state == TrialState.FAIL) is not alike
    assert (study.ask(Budget(2)) is None) is alike


def test_a_trial_whose_driver_died_is_taken_up_again_and_fails_only_where_it_dies_again_and_again(tmp_path):
    study = open_study(tmp_path)
    scheduler = StudyScheduler(
        study, timetable(Budget(9)), Told(), lambda *_: None, SimpleNamespace(told=False), THERE, no_wait()
    )
    lost, text = tmp_path / "lost.txt", tmp_path / "error.txt"
    lost.write_text(f"Failure # 1 (occurred at 2026-01-01_00-00-00)\n{ActorDiedError()}\n")  # as Ray Tune does
    text.write_text("Failure # 1 (occurred at 2026-01-01_00-00-00)\n  the actor's bug\nValueError: a bug\n")
    number, _ = study.ask(Budget(9))
    run = Folder.at(str(tmp_path / "run"))
    trial = SimpleNamespace(config={"number": number, "spec": SimpleNamespace(folder=run)}, error_file=str(lost))
    study.report(number, 1, result(0.9, 1))
    for _ in range(2):
        scheduler.on_trial_error(None, trial)
        assert study.ask(Budget(9))[0] == number, "before any other"
    study.report(number, 2, result(0.8, 2))
    for _ in range(2):
        scheduler.on_trial_error(None, trial)
        assert study.ask(Budget(9))[0] == number, "it had got on"
    run.write(STALLED, b"no step for 30 minutes")
    scheduler.on_trial_error(None, trial)
    assert study.trial(number).state == TrialState.FAIL
    assert study.trial(number).user_attrs[REASON] == "no step for 30 minutes", "by what it left before it ended itself"
    bug = SimpleNamespace(config={"number": study.ask(Budget(9))[0]}, error_file=str(text))
    scheduler.on_trial_error(None, bug)
    assert study.trial(bug.config["number"]).state == TrialState.FAIL


def test_a_trial_of_which_ray_ends_a_process_for_want_of_memory_is_taken_up_again_and_says_so_in_the_end(tmp_path):
    """It failed for good at once, with Ray's advice on other documentation as the reason."""
    study = open_study(tmp_path)
    interrupt, told = SimpleNamespace(told=False), tmp_path / "told.txt"
    scheduler = StudyScheduler(study, timetable(Budget(9)), Told(), lambda *_: None, interrupt, THERE, no_wait())
    low = "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.1) was 22 GB"
    told.write_text(
        f"ray.train.ControllerError: Training failed due to controller error:\n{low}\nRefer to the documentation"
    )
    number, _ = study.ask(Budget(9))
    run = Folder.at(str(tmp_path / "run"))
    trial = SimpleNamespace(config={"number": number, "spec": SimpleNamespace(folder=run)}, error_file=str(told))
    for _ in range(2):
        scheduler.on_trial_error(None, trial)
        assert study.ask(Budget(9))[0] == number
    scheduler.on_trial_error(None, trial)
    assert study.trial(number).state == TrialState.FAIL
    assert study.trial(number).user_attrs[REASON].endswith("times: Ray ended it, its machine being low on memory")


def test_the_last_trial_is_taken_up_again_too_when_its_driver_dies(tmp_path):
    """Ray Tune never asks again once it was told that nothing is left: the trial counted as stopped by the budget."""
    study, budget, interrupt = open_study(tmp_path), Budget(1), SimpleNamespace(told=False)
    searcher = StudySearcher(study, timetable(budget), lambda number, params: number, interrupt, THERE, no_wait(), lambda: 9)
    scheduler = StudyScheduler(study, timetable(budget), Told(), lambda *_: None, interrupt, THERE, no_wait())
    lost = tmp_path / "lost.txt"
    lost.write_text(f"Failure # 1 (occurred at 2026-01-01_00-00-00)\n{ActorDiedError()}\n")
    number = searcher.suggest("first")["number"]
    assert searcher.suggest("second") is None, "there is room for another one, but not an end yet"
    scheduler.on_trial_error(None, SimpleNamespace(config={"number": number}, error_file=str(lost)))
    searcher.on_trial_complete("first", error=True)
    assert searcher.suggest("second")["number"] == number
    study.tell(number, TrialState.PRUNED, "stopped")
    searcher.on_trial_complete("second")
    assert searcher.suggest("third") == Searcher.FINISHED


def test_a_trial_that_ended_before_its_driver_died_is_not_begun_again(tmp_path):
    """MLflow showed it as running from then on."""
    study = open_study(tmp_path)
    scheduler = StudyScheduler(
        study, timetable(Budget(9)), Told(), lambda *_: None, SimpleNamespace(told=False), THERE, no_wait()
    )
    lost = tmp_path / "lost.txt"
    lost.write_text(f"Failure # 1 (occurred at 2026-01-01_00-00-00)\n{ActorDiedError()}\n")
    number, _ = study.ask(Budget(9))
    study.tell(number, TrialState.PRUNED, "stopped")
    scheduler.on_trial_error(None, SimpleNamespace(config={"number": number}, error_file=str(lost)))
    assert study.ask(Budget(9))[0] != number


def test_trials_that_learn_from_others_are_drawn_when_machines_are_there_and_not_to_wait_for_them(tmp_path):
    """Eight GPUs that may come: eight trials were drawn before the first result, and none of them could learn from any."""
    study, room, interrupt = open_study(tmp_path), 2, SimpleNamespace(told=False)
    searcher = StudySearcher(
        study, timetable(Budget(99)), lambda number, params: number, interrupt, THERE, no_wait(), lambda: room
    )
    begun = [searcher.suggest(f"trial {number}") for number in range(20)]
    drawn = [each["number"] for each in begun if each]
    assert drawn == list(range(DRAWN_AT_RANDOM)), "those of the start learn from nothing: the more machines are asked for"
    for number in range(DRAWN_AT_RANDOM - room):
        study.tell(number, TrialState.PRUNED, "stopped")
        searcher.on_trial_complete(f"trial {number}")
    assert searcher.suggest("next")["number"] == DRAWN_AT_RANDOM, "one more than there is room for asks for a machine"
    assert searcher.suggest("later") is None
    room = 3
    assert searcher.suggest("later")["number"] == DRAWN_AT_RANDOM + 1


def test_while_the_storage_is_away_nothing_begins_and_nothing_fails(tmp_path):
    study, storage, interrupt = open_study(tmp_path), SimpleNamespace(is_away=True), SimpleNamespace(told=False)
    scheduler = StudyScheduler(study, timetable(Budget(9)), Told(), lambda *_: None, interrupt, storage, no_wait())
    searcher = StudySearcher(
        study, timetable(Budget(9)), lambda number, params: number, interrupt, storage, no_wait(), lambda: 9
    )
    number, _ = study.ask(Budget(9))
    scheduler.on_trial_error(None, SimpleNamespace(config={"number": number}, error_file=None))
    assert study.trial(number).state == TrialState.RUNNING
    assert searcher.suggest("") is None, "later"
    storage.is_away = False
    assert searcher.suggest("")["number"] == number


def test_a_search_killed_while_it_is_judged_is_not_searched_another_night(tmp_path):
    """The same command, --until included, the next day; and then a larger one."""
    study = open_study(tmp_path)
    budget = study.begin(Budget(5, deadline=1.0, until="07:00"))
    assert budget.time_is_over and study.ask(budget) is None
    study.enter(JUDGING)
    again = open_study(tmp_path)
    tomorrow = Budget(5, deadline=4e9, until="07:00")
    assert again.begin(tomorrow).time_is_over
    assert again.phase == JUDGING
    assert not again.begin(Budget(5, seconds=60.0)).time_is_over, "an end that is no longer asked for"
    assert again.phase == SEARCHING


def test_hours_that_were_searched_before_a_kill_count(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(clock, "seconds", lambda: now[0])
    study = open_study(tmp_path)
    budget = study.begin(Budget(5, seconds=3600.0))
    number, _ = study.ask(budget)
    now[0] += 3000.0
    study.report(number, 1, result(0.5, 1))
    now[0] = 7.0  # another machine
    left = open_study(tmp_path).begin(Budget(5, seconds=3600.0))
    assert left.seconds_left == pytest.approx(600.0)
    now[0] += 601.0
    assert left.time_is_over


def test_a_search_of_before_budgets_were_recorded_goes_on(tmp_path):
    study = open_study(tmp_path)
    number, _ = study.ask(Budget(2))
    study.tell(number, TrialState.FAIL, "")
    again = open_study(tmp_path)
    assert again.phase == SEARCHING
    assert again.ask(again.begin(Budget(2))) is not None
