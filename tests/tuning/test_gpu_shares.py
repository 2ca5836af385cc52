"""Several trials on a card: how many there is room for, and what each takes of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch

from raymed.cluster import connection
from raymed.compat.ray import HEAD_NODE
from raymed.data.prepared import Prepared
from raymed.errors import RunError, UserError
from raymed.systems.toy.recipe import ToyRecipe
from raymed.training import cards, memory_plan, memory_try
from raymed.training.memory_plan import chosen
from raymed.training.memory_try import Tried
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.tuning import card_share
from raymed.tuning.budget import Budget
from raymed.tuning.execution import _keeps_processes, run_search
from raymed.tuning.room import trial_resources, whole_resources
from raymed.tuning.search import Search
from raymed.tuning.search_name import search_names
from raymed.tuning.settings import SearchSettings
from raymed.tuning.space import Dimension


@pytest.fixture
def search(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    """On one machine with two cards and 32 CPUs, one more of which is offered for what only waits."""
    machine = {"CPU": 33.0, "GPU": 2.0, HEAD_NODE: 1.0}
    monkeypatch.setattr(connection, "resources", lambda: machine)
    monkeypatch.setattr(connection, "machines", lambda: [machine])
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    template = RunSpec("search", str(tmp_path), prepared.folder.uri, recipe, TrainSettings(global_batch=32, micro_batch=8))
    return Search(template, SearchSettings(), Budget(trials=8), "")


def sharing(search: Search, share: float | Literal["auto"], workers: int = 1) -> Search:
    settings = dataclasses.replace(search.settings, gpus_per_worker=share)
    return dataclasses.replace(search, template=dataclasses.replace(search.template, workers=workers), settings=settings)


@pytest.mark.parametrize(("share", "at_once", "cpus"), [(1.0, 2, 16), (0.5, 4, 8), (0.3, 6, 5), (0.25, 8, 4)])
def test_a_share_of_a_card_makes_room_for_more_trials_with_fewer_cpus_each(
    search: Search, share: float, at_once: int, cpus: int
) -> None:
    each, concurrent = trial_resources(sharing(search, share))
    assert (each.gpus, each.cpus, concurrent) == (share, cpus, at_once)


@pytest.mark.parametrize(("workers", "at_once"), [(1, 6), (2, 2), (3, 2), (4, 1)])
def test_as_many_runs_are_at_once_as_machines_hold_with_their_workers_together(
    workers: int, at_once: int, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three workers each, two runs; of two, one on each machine of three cards: the rest lies apart, and stays free."""
    machines = [{"CPU": 25.0, "GPU": 3.0, HEAD_NODE: 1.0}, {"CPU": 24.0, "GPU": 3.0}]
    monkeypatch.setattr(connection, "resources", lambda: {"CPU": 49.0, "GPU": 6.0})
    monkeypatch.setattr(connection, "machines", lambda: machines)
    assert trial_resources(sharing(search, 1.0, workers))[1] == at_once


def test_machines_of_other_sizes_are_counted_as_they_are(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers find no room on a machine of one card, though four of those have as many as the large one."""
    machines = [{"CPU": 33.0, "GPU": 4.0, HEAD_NODE: 1.0}, *[{"CPU": 8.0, "GPU": 1.0}] * 4]
    monkeypatch.setattr(connection, "resources", lambda: {"CPU": 65.0, "GPU": 8.0})
    monkeypatch.setattr(connection, "machines", lambda: machines)
    assert trial_resources(sharing(search, 1.0, 2))[1] == 2


def test_the_refit_of_a_search_on_shares_has_whole_cards(search: Search) -> None:
    shared = sharing(search, 0.25)
    whole = whole_resources(shared, shared.template)
    assert (whole.workers, whole.gpus, whole.cpus) == (2, 1.0, 16)


def test_two_workers_of_one_run_are_refused_on_shares_before_nccl_does(search: Search) -> None:
    with pytest.raises(UserError, match=r"--search\.gpus_per_worker 1"):
        trial_resources(sharing(search, 0.5, workers=2))
    with pytest.raises(UserError, match="more than 0"):
        SearchSettings(gpus_per_worker=1.5)


def test_the_refit_asks_for_no_more_cpus_than_there_are_and_leaves_no_card_idle(search: Search) -> None:
    settings = dataclasses.replace(search.settings, gpus_per_worker=0.3, cpus_per_worker=8)
    few = dataclasses.replace(search, settings=settings)
    assert trial_resources(few)[1] == 4, "trials at once"
    whole = whole_resources(few, few.template)
    assert (whole.workers, whole.cpus) == (2, 16)


def test_a_mistake_in_the_prices_is_told_before_the_night_and_not_in_the_morning(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYMED_PRICES", "head=0.50;GPU=0.45")
    tracked = dataclasses.replace(search, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(UserError, match="RAYMED_PRICES"):
        run_search(tracked, trainer=lambda *_: pytest.fail("trials began"))
    assert not tracked.open_study().trials


@pytest.mark.parametrize(("searched", "stage", "kept"), [((), 1, True), ((), 3, False), (("train.zero_stage",), 1, False)])
def test_a_process_that_trained_under_zero_3_has_no_run_after_it(
    search: Search, searched: tuple[str, ...], stage: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymed.training.lone_worker.is_own", lambda: True)
    train = dataclasses.replace(search.template.train, zero_stage=stage)
    space = {name: Dimension(choices=(1, 2)) for name in searched}
    settings = dataclasses.replace(search.settings, space=space)
    tried = dataclasses.replace(search, template=dataclasses.replace(search.template, train=train), settings=settings)
    assert _keeps_processes(tried, trial_resources(tried)[0]) is kept


@pytest.mark.parametrize(("given", "limits"), [(0.25, [0.15]), (1.0, []), (2.0, [])])
def test_a_worker_on_a_share_leaves_the_others_memory_alone(
    given: float, limits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    limited: list[float] = []
    context = SimpleNamespace(get_assigned_resources=lambda: {"GPU": given})
    told = SimpleNamespace(is_initialized=lambda: True, get_gpu_ids=lambda: [0], get_runtime_context=lambda: context)
    monkeypatch.setattr(cards, "ray", told)
    card = SimpleNamespace(total_memory=10 * cards.CONTEXT)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: limited.append(share))
    cards.keep_to_share(torch.device("cuda", 0))
    assert limited == pytest.approx(limits)


GIB = 2**30


class Card:
    """A card as it answers those who try something on it.

    Attributes:
        room: bytes that a process may hold.
        a_row: bytes that a row of a micro-batch takes.
        tried: micro-batches that were tried, in packs.
    """

    def __init__(self, room: int, a_row: int) -> None:
        self.room, self.a_row, self.tried = room, a_row, list[int]()

    def plan_alone(self, spec: RunSpec, device: torch.device, room: int, cpus: int) -> memory_plan.MemoryPlan:
        def attempt(train: TrainSettings) -> Tried:
            self.tried.append(train.packs_at_once)
            needed = train.packs_at_once * self.a_row
            return Tried(needed if needed <= room else None)

        return chosen(spec, 1, room, attempt)


def asking_of(search: Search, trials: int = 8, **settings: Any) -> Search:
    """A search of several trials that asks how many share a card."""
    given = {"space": {"train.lr": Dimension(low=1e-4, high=1e-2)}, "gpus_per_worker": "auto"} | settings
    return dataclasses.replace(search, settings=dataclasses.replace(search.settings, **given), budget=Budget(trials=trials))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card(15 * GIB, GIB // 8)  # a micro-batch of eight needs 1 GiB, which with margin and context are 2.1 of 16
    monkeypatch.setattr(memory_try, "room_alone", lambda device, waiting: card.room)
    monkeypatch.setattr(memory_plan, "plan_alone", card.plan_alone)
    return card


def test_as_many_trials_share_a_card_as_were_seen_to_fit_and_the_record_keeps_it(search: Search, card: Card) -> None:
    asking = asking_of(search, trials=40)
    assert trial_resources(asking)[0].gpus == 1, "until it is tried"
    assert "is tried when the search begins" in card_share.line(asking)
    card_share.settle(asking, asking.budget)
    each, concurrent = trial_resources(asking)
    assert (each.gpus, each.cpus, concurrent) == (0.1428, 2, 14), "seven on each of two cards"
    assert card_share.line(asking).startswith(
        "7 at once on a card: 7 fit into its 15.00 GiB, of which one needs 1.00; 8 find"
    )
    share = 1 / 7 - cards.CONTEXT / (16 * GIB)  # what `keep_to_share` leaves a trial to hold
    assert share * 16 * GIB * memory_plan.FILLED >= 8 * card.a_row
    assert whole_resources(asking, asking.template).gpus == 1, "a refit has whole cards"
    card_share.settle(asking, asking.budget)
    assert card.tried == [8], "a search that goes on knows it"


def test_on_a_smaller_card_fewer_trials_go_on_and_another_micro_batch_is_tried_anew(search: Search, card: Card) -> None:
    asking = asking_of(search)
    card_share.settle(asking, asking.budget)
    card.room = 7 * GIB
    card_share.settle(asking, asking.budget)
    assert trial_resources(asking)[0].gpus == 0.3333 and card.tried == [8]
    train = dataclasses.replace(asking.template.train, micro_batch=32)
    larger = dataclasses.replace(asking, template=dataclasses.replace(asking.template, train=train))
    card_share.settle(larger, larger.budget)
    assert trial_resources(larger)[0].gpus == 1 and card.tried == [8, 32]
    card.room = 3 * GIB
    with pytest.raises(UserError, match=r"no micro-batch of this run fits into the 3\.00 GiB"):
        card_share.settle(larger, larger.budget)


def test_the_largest_that_is_searched_says_how_many_share_a_card(search: Search, card: Card) -> None:
    space = {
        "train.lr": Dimension(low=1e-4, high=1e-2),
        "train.global_batch": Dimension(low=8, high=32),
        "train.micro_batch": Dimension(choices=(8, 16)),
    }
    asking = asking_of(search, space=space)
    card_share.settle(asking, asking.budget)
    assert card.tried == [8, 16], "rates take no memory, and ranges are tried at their ends"
    assert trial_resources(asking)[0].gpus == 0.25, "of 16 packs, which eight trials on two cards are content with"


def test_a_choice_that_no_card_holds_is_left_to_its_trial_and_ends_no_search(
    search: Search, card: Card, caplog: pytest.LogCaptureFixture
) -> None:
    card.room = 2 * GIB
    asking = asking_of(search, space={"train.micro_batch": Dimension(choices=(8, 32))})
    with caplog.at_level("WARNING"):
        card_share.settle(asking, asking.budget)
    assert "train.micro_batch 32, as tried on a whole card: no micro-batch of this run fits" in caplog.text
    assert trial_resources(asking)[0].gpus == 1


def test_a_card_that_others_hold_is_waited_for_until_the_searchs_time_is_over(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card_share, "none_can_come", lambda: False)
    monkeypatch.setattr(card_share, "machines_to_come", lambda: "on their way: 1 x gpu")
    with caplog.at_level("INFO"):
        card_share._wait(Budget(trials=1))
    assert "a card is waited for, to try what a trial needs of it; on their way: 1 x gpu" in caplog.text
    with pytest.raises(RunError, match="no card was free within the search's time"):
        card_share._wait(Budget(trials=1, seconds=1.0).begun(spent=2.0))
    monkeypatch.setattr(card_share, "none_can_come", lambda: True)
    with pytest.raises(RunError, match="no machine can be set up"):
        card_share._wait(Budget(trials=1))


def test_a_search_goes_on_under_its_name_when_trials_begin_to_share_cards(search: Search) -> None:
    template = dataclasses.replace(search.template, workers=1)
    shares = (1.0, 0.25, "auto")
    names = [search_names([template], dataclasses.replace(search.settings, gpus_per_worker=share), {}) for share in shares]
    assert names[0][0] == names[1][0] == names[2][0]
    assert len(names[0]) == 1 and len(names[1]) == 2, "what it was called while its share counted"


def test_no_more_trials_share_a_card_than_there_are_and_have_their_cpus(search: Search, card: Card) -> None:
    card.a_row = 0
    for trials, settings, share in (
        (40, {}, 0.125),
        (3, {}, 0.5),
        (40, {"concurrent": 2}, 1.0),
        (40, {"cpus_per_worker": 8}, 0.5),
        (40, {"cpus_per_worker": 20}, 1.0),
    ):
        asking = asking_of(search, trials, **settings)
        card_share.settle(asking, asking.budget)
        assert card_share.share(asking) == share, (trials, settings)


def test_workers_of_one_run_and_machines_without_a_card_are_not_asked(
    search: Search, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = sharing(asking_of(search), "auto", workers=2)
    card_share.settle(wide, wide.budget)
    assert trial_resources(wide)[0].gpus == 1 and not card_share.line(wide)
    monkeypatch.setattr(connection, "resources", lambda: {"CPU": 33.0})
    alone = asking_of(search)
    card_share.settle(alone, alone.budget)
    assert trial_resources(alone)[0].gpus == 0 and not card_share.line(alone) and not card.tried


def test_what_a_trial_needs_of_a_card_is_tried_by_processes_that_have_it_alone(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def options(**given: Any) -> SimpleNamespace:
        asked.append(given)
        return SimpleNamespace(remote=lambda *values: Tried(len(values)))

    monkeypatch.setattr(memory_try, "_try", SimpleNamespace(options=options))
    monkeypatch.setattr(memory_try, "_answer", lambda tried: tried)
    assert memory_plan.plan_alone(search.template, torch.device("cuda", 0), GIB, 2).micro_batch == 8
    assert asked == [{"num_cpus": 2, "num_gpus": 1, "max_retries": 0}]
