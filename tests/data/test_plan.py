"""Promises 2 and 3: each planned row once, in an order that workers, speed and restarts cannot change."""

import numpy as np
import pytest
from conftest import write_prepared
from hypothesis import given
from hypothesis import strategies as st

from raymed.data.plan import SliceSettings, choose, plan_epoch, row_weights, showings, uniform
from raymed.errors import UserError


def test_uniform_choice_is_the_published_index_vector():
    assert uniform(33, 16).tolist() == [0, 2, 4, 6, 9, 11, 13, 15, 17, 19, 21, 23, 26, 28, 30, 32]


@given(st.integers(1, 200), st.integers(1, 40))
def test_uniform_choice_never_repeats_a_slice_and_takes_all_when_few(count, wanted):
    chosen = uniform(count, wanted)
    assert len(set(chosen.tolist())) == min(count, wanted)
    assert chosen.min() >= 0
    assert chosen.max() < count


def series(patients: int, slices: int):
    rows = np.arange(patients * slices)
    names = np.array([f"p{row // slices}" for row in rows], dtype=object)
    return rows, names, names, rows % slices


@pytest.mark.parametrize(("choice", "expected"), [("middle", [2, 3, 4]), ("uniform", [0, 3, 6]), ("all", list(range(7)))])
def test_choice_takes_the_named_part_of_the_series(choice, expected):
    assert choose(*series(1, 7), SliceSettings(3, choice)).tolist() == expected


def test_random_choice_changes_with_the_epoch_only_and_is_uniform_in_evaluation():
    settings = SliceSettings(4, "random")
    first, again, second = (choose(*series(5, 30), settings, seed=1, epoch=epoch).tolist() for epoch in (0, 0, 1))
    assert first == again != second
    assert choose(*series(5, 30), settings, seed=1).tolist() == choose(*series(5, 30), SliceSettings(4)).tolist()


def test_choice_does_not_depend_on_the_order_in_which_rows_come():
    rows, patients, studies, positions = series(6, 20)
    shuffled = np.random.default_rng(0).permutation(len(rows))
    settings = SliceSettings(5, "random", limit=4)
    straight = choose(rows, patients, studies, positions, settings, 3, 2)
    mixed = choose(rows[shuffled], patients[shuffled], studies[shuffled], positions[shuffled], settings, 3, 2)
    assert straight.tolist() == mixed.tolist()
    assert len({patients[row] for row in straight}) == 4


def test_a_series_belongs_to_one_patient_whatever_the_names_are():
    patients, studies = np.array(["p1", "p1", "p11", "p11"], dtype=object), np.array(["1x", "1x", "x", "x"], dtype=object)
    assert choose(np.arange(4), patients, studies, np.array([0, 1, 0, 1]), SliceSettings(2)).tolist() == [0, 1, 2, 3]


def test_an_empty_split_chooses_nothing():
    empty = np.array([], dtype=object)
    assert choose(np.arange(0), empty, empty, np.arange(0), SliceSettings(2)).tolist() == []


def test_choosing_no_slices_is_refused():
    with pytest.raises(UserError, match="at least 1"):
        SliceSettings(0)


@given(st.integers(1, 120), st.integers(1, 17), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_uses_every_row_exactly_once(count, global_batch, seed, epoch):
    plan = plan_epoch([(row,) for row in range(count)], global_batch, seed, epoch, {})
    assert sorted(row for batch in plan.batches for (row,) in batch) == list(range(count))
    assert plan == plan_epoch([(row,) for row in range(count)], global_batch, seed, epoch, {})


LABELS = np.repeat([0, 1, 2], [100, 50, 10])


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("inverse_freq", [0.528, 1.046, 4.848]),
        ("inverse_sqrt", [1.259, 1.771, 3.814]),
        ("balanced", [0.533, 1.067, 5.333]),
    ],
)
def test_rows_are_weighted_by_how_rare_their_class_is(method, expected):
    weights = row_weights(LABELS, SliceSettings(class_weights=method))
    assert [weights[label == LABELS].tolist() for label in range(3)] == [
        pytest.approx([value] * count, abs=5e-4) for value, count in zip(expected, [100, 50, 10], strict=True)
    ]


def test_showings_of_a_row_are_counted_in_the_order_of_the_epoch():
    batches = (((4, 7), (4,)), ((7,), (5, 4)))
    assert showings(batches) == (((0, 0), (1,)), ((1,), (0, 2)))


def test_weighted_epochs_have_as_many_rows_drawn_anew_and_count_what_is_left_out(tmp_path):
    prepared = write_prepared(tmp_path, patients=40)
    rows, settings = prepared.rows("train"), SliceSettings(choice="all", class_weights="inverse_freq")
    first, again, second = (settings.draw(prepared, [rows], 0, epoch) for epoch in (0, 0, 1))
    drawn = [row for (row,) in first.packs]
    assert len(drawn) == len(rows) and set(drawn) < set(rows.tolist())
    assert first.packs == again.packs != second.packs
    assert first.left_out == {"not drawn in this epoch": len(rows) - len(set(drawn))}
    assert SliceSettings(choice="all").draw(prepared, [rows], 0, 0).left_out == {}
