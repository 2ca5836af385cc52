"""Promises 2 and 3: each planned row once, in an order that workers, speed and restarts cannot change."""

import dataclasses

import numpy as np
import pytest
from conftest import write_prepared
from hypothesis import given
from hypothesis import strategies as st

from raymed.data.plan import Series, SliceSettings, choose, foremost, plan_epoch, repeat_counts, row_weights, uniform
from raymed.errors import UserError


def test_uniform_choice_is_the_published_index_vector():
    assert uniform(33, 16).tolist() == [0, 2, 4, 6, 9, 11, 13, 15, 17, 19, 21, 23, 26, 28, 30, 32]


@given(st.integers(1, 200), st.integers(1, 40))
def test_uniform_choice_never_repeats_a_slice_and_takes_all_when_few(count, wanted):
    chosen = uniform(count, wanted)
    assert len(set(chosen.tolist())) == min(count, wanted)
    assert chosen.min() >= 0
    assert chosen.max() < count


def series(*studies: tuple[int, int]) -> Series:
    """Slices of some (patient, number of slices), a study each."""
    patients = np.repeat([patient for patient, _ in studies], [size for _, size in studies])
    owners = np.repeat(range(len(studies)), [size for _, size in studies])
    positions = np.concatenate([np.arange(size) for _, size in studies] or [np.arange(0)])
    return Series(patients, owners, positions, lambda place: f"study {owners[place]}")


@pytest.mark.parametrize(
    ("choice", "slices", "expected"),
    [
        ("middle", 7, [2, 3, 4]),
        ("middle", 8, [2, 3, 4]),
        ("middle", 3, [0, 1, 2]),
        ("uniform", 7, [0, 3, 6]),
        ("all", 7, list(range(7))),
    ],
)
def test_choice_takes_the_named_part_of_the_series(choice, slices, expected):
    assert choose(series((0, slices)), SliceSettings(3, choice=choice)).tolist() == expected


def test_random_choice_changes_with_the_epoch_only_and_is_uniform_in_evaluation():
    settings, slices = SliceSettings(4, choice="random"), series(*((patient, 30) for patient in range(5)))
    first, again, second = (choose(slices, settings, seed=1, epoch=epoch).tolist() for epoch in (0, 0, 1))
    assert first == again != second
    assert choose(slices, settings, seed=1).tolist() == choose(slices, SliceSettings(4)).tolist()


def test_choice_does_not_depend_on_the_order_in_which_rows_come():
    slices = series(*((patient // 2, 20) for patient in range(6)))
    shuffled = np.random.default_rng(0).permutation(len(slices.studies))
    mixed = Series(
        *(column[shuffled] for column in (slices.patients, slices.studies, slices.positions)),
        lambda place: slices.name(shuffled[place]),
    )
    for choice in ("random", "uniform", "middle"):
        settings = SliceSettings(5, choice=choice)
        straight, other = choose(slices, settings, 3, 2), shuffled[choose(mixed, settings, 3, 2)]
        assert straight.tolist() == sorted(other.tolist())


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((40,), [16]),
        ((40, 40), [8, 8]),
        ((40, 40, 40), [5, 5, 6]),
        ((40, 2, 40), [7, 2, 7]),
        ((3, 4), [3, 4]),
        ((9,) * 5, [3, 3, 3, 3, 4]),
        ((9,) * 18, [1] * 4 + [0] + [1] * 8 + [0] + [1] * 4),
    ],
)
def test_a_patient_gives_as_many_slices_however_many_series_there_are(sizes, expected):
    """Sixteen of each series made a patient with five of them count five times."""
    slices = series((0, 30), *((1, size) for size in sizes), (2, 50))
    chosen = np.bincount(slices.studies[choose(slices, SliceSettings(16))], minlength=len(sizes) + 2)
    assert chosen.tolist() == [16, *expected, 16]
    each = np.bincount(slices.studies[choose(slices, SliceSettings(16, per="study"))], minlength=len(sizes) + 2)
    assert each[1:-1].tolist() == [min(16, size) for size in sizes]


def test_models_from_before_slices_were_counted_per_patient_keep_their_own():
    assert SliceSettings.read({"per_patient": 4, "choice": "middle"}) == SliceSettings(4, per="study", choice="middle")
    assert SliceSettings.read(dataclasses.asdict(SliceSettings(4))) == SliceSettings(4)


def test_a_run_from_before_slices_were_counted_per_patient_goes_on_per_study():
    """Its settings were recorded without that one, and whatever was given, they had changed."""
    recorded = "SliceSettings(per_patient=4, choice='middle', limit=0, class_weights='none', smoothing=1.0)"
    assert str(SliceSettings(4, per="study", choice="middle")) == recorded
    assert str(SliceSettings(4, choice="middle")) != recorded
    assert str(SliceSettings(4, choice="all")) == recorded.replace("middle", "all"), "of whom does not matter"


def test_settings_at_the_edge_of_what_is_allowed_are_taken_and_those_beyond_are_refused():
    assert SliceSettings(per_patient=1, smoothing=0.0).per_patient == 1
    for beyond, says in (({"per_patient": 0}, "at least 1"), ({"smoothing": -0.1}, "at least 0")):
        with pytest.raises(UserError, match=says):
            SliceSettings(**beyond)


def test_an_empty_split_chooses_nothing():
    assert choose(series(), SliceSettings(2)).tolist() == []


def test_a_limit_takes_every_class_and_a_larger_one_keeps_its_patients():
    labels = np.repeat([0, 1, 2, 3], [700, 200, 95, 5])
    names = np.array([f"p{place}" for place in range(1000)], dtype=object)
    taken = {limit: foremost(names, labels, limit, seed=0).tolist() for limit in (4, 24, 100, 5000)}
    assert sorted(labels[taken[4]].tolist()) == [0, 1, 2, 3]
    assert np.bincount(labels[taken[24]]).min() >= 1
    assert np.bincount(labels[taken[100]]).tolist() == pytest.approx([70, 20, 10, 1], abs=1)
    assert taken[100][:24] == taken[24] and sorted(taken[5000]) == list(range(1000))
    shuffled = np.random.default_rng(0).permutation(1000)
    mixed = foremost(names[shuffled], labels[shuffled], 24, seed=0)
    assert set(names[shuffled][mixed]) == set(names[taken[24]]), "the patients, not the order they come in, decide"
    assert set(taken[24]) != set(foremost(names, labels, 24, seed=1).tolist())


def test_a_small_class_has_its_share_of_a_limit_and_no_less():
    labels = np.repeat([0, 1], [2, 10])
    taken = foremost(np.array([f"p{number}" for number in range(12)]), labels, 10, seed=0)
    assert np.bincount(labels[taken]).tolist() == [2, 8]  # 1.7 and 8.3


def test_what_a_plan_leaves_out_is_counted_by_reason(tmp_path):
    """Left out by the limit, all used to be told as not among the slices chosen."""
    prepared = write_prepared(tmp_path, patients=24)  # of 4 slices each, 18 of them in train
    drawn = SliceSettings(3, limit=5).draw(prepared, [prepared.rows("train")], 0, 0)
    assert drawn.left_out == {
        "of patients beyond slices.limit 5": 13 * 4,
        "not among the 3 uniform slices of a patient": 5,
    }
    assert len(drawn.packs) == 15
    rows = SliceSettings(3, limit=5).choose(prepared, prepared.rows("train"), 0, 0)
    assert len(set(prepared.columns(rows, ["label"])["label"])) == 4
    assert [row for (row,) in drawn.packs] == rows.tolist()


def test_patients_and_studies_of_an_index_are_numbered_where_names_repeat(tmp_path):
    prepared = write_prepared(tmp_path, patients=8)
    patients, studies = prepared.owners
    assert patients.tolist() == studies.tolist() == np.repeat(range(8), 4).tolist()


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
    assert repeat_counts(batches) == (((0, 0), (1,)), ((1,), (0, 2)))


def test_weighted_epochs_have_as_many_rows_drawn_anew_and_count_what_is_left_out(tmp_path):
    prepared = write_prepared(tmp_path, patients=40)
    rows, settings = prepared.rows("train"), SliceSettings(choice="all", class_weights="inverse_freq")
    first, again, second = (settings.draw(prepared, [rows], 0, epoch) for epoch in (0, 0, 1))
    drawn = [row for (row,) in first.packs]
    assert len(drawn) == len(rows) and set(drawn) < set(rows.tolist())
    assert first.packs == again.packs != second.packs
    assert first.left_out == {"not drawn in this epoch": len(rows) - len(set(drawn))}
    assert SliceSettings(choice="all").draw(prepared, [rows], 0, 0).left_out == {}
