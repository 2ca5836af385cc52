"""Promise 3: a global batch is divided among workers without being changed, and every worker's work counts."""

from itertools import accumulate, chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymed.data.micro_batches import Division
from raymed.errors import UserError


def batch_of(packs: int):
    return tuple((row,) for row in range(packs))


def sizes(division: Division, packs: int) -> list[list[int]]:
    """Packs that count, a worker and round."""
    return [[len(micro.packs) * micro.counts for micro in together] for together in division.rounds(batch_of(packs))]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 6), st.integers(0, 12), st.booleans())
def test_workers_divide_a_global_batch_without_changing_it(packs, size, workers, group, whole):
    division = Division(size, workers, group, whole)
    try:
        shares = [division.share(batch_of(packs), worker) for worker in range(workers)]
    except UserError:
        assert group > size
        return
    assert len({len(mine) for mine in shares}) == 1, "a worker would wait for ever in a collective"
    assert all(len(micro.packs) <= size for mine in shares for micro in mine)
    assert sorted(row for mine in shares for micro in mine if micro.counts for (row,) in micro.packs) == list(range(packs))


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 6))
def test_a_worker_only_idles_where_there_are_fewer_packs_than_workers(packs, size, workers):
    *whole, last = sizes(Division(size, workers), packs)
    assert all(0 not in together for together in whole)
    assert last.count(0) == max(0, len(last) - sum(last))
    every = [count for together in (*whole, last) for count in together if count]
    assert max(every) - min(every) <= 1, "equal sizes where it can be"


def test_a_batch_of_one_micro_batch_is_divided_among_the_workers():
    """Every worker but the first used to repeat it, and its work did not count."""
    assert sizes(Division(16, 2), 16) == [[8, 8]]
    assert sizes(Division(16, 3), 16) == [[6, 5, 5]]
    assert sizes(Division(16, 3, group=16), 16) == [[6, 5, 5]]


def test_packs_that_meet_do_so_in_the_same_groups_whatever_workers_and_micro_batch():
    """A round's micro-batches form one group where they span the workers, and are a group each where they do not."""

    def groups(division: Division) -> list[list[int]]:
        met = []
        for together in division.rounds(batch_of(40)):
            spans = {micro.spans for micro in together}
            rows = [[row for (row,) in micro.packs] for micro in together if micro.counts]
            parts = [size for micro in together if micro.counts for size in micro.groups or [len(micro.packs)]]
            every = list(chain(*rows))
            ends = list(accumulate(parts, initial=0))
            met += [every] if spans == {True} else [every[start:end] for start, end in pairwise(ends)]
        return sorted(met)

    one = groups(Division(16, 1, group=16))
    assert [len(group) for group in one] == [14, 13, 13]
    for micro_batch, workers in ((16, 2), (16, 3), (8, 2), (7, 2), (4, 4), (40, 8), (40, 1), (28, 1)):
        assert groups(Division(micro_batch, workers, group=16)) == one
    assert groups(Division(16, 2, group=16, whole=True)) == one


def test_groups_are_divided_only_where_they_do_not_give_every_worker_one():
    spans = [[micro.spans for micro in together] for together in Division(8, 2, group=8).rounds(batch_of(24))]
    assert spans == [[False, False], [True, True]]


def test_a_micro_batch_holds_as_many_groups_as_it_has_room_for_but_one_contrast():
    """Small groups need not make small micro-batches, whose every pass costs."""
    ((one,),) = Division(16, 1, group=8).rounds(batch_of(16))
    assert (len(one.packs), one.groups) == (16, (8, 8))
    assert [[(len(m.packs), m.groups) for m in each] for each in Division(16, 2, group=8).rounds(batch_of(32))] == [
        [(16, (8, 8)), (16, (8, 8))]
    ]
    assert sizes(Division(20, 1, group=8), 40) == [[16], [16], [8]]
    assert sizes(Division(16, 1, group=8, whole=True), 16) == [[8], [8]]


def test_a_group_that_no_round_can_hold_is_refused_with_what_to_set():
    with pytest.raises(UserError, match=r"Set train.micro_batch to 16, or.*train.norm_group to 8"):
        Division(8, 1, group=16).rounds(batch_of(16))
    with pytest.raises(UserError, match=r"only 8 are computed at once"):
        Division(8, 2, group=16, whole=True).check(16)
    Division(8, 2, group=16).check(16)


def test_workers_that_would_be_no_faster_do_not_help():
    assert [Division(16, workers).helpful(16) for workers in (1, 2, 3, 5, 9, 40)] == [1, 2, 3, 4, 8, 16]
    assert Division(1, 8).helpful(2) == 2
    assert Division(16, 8, group=16, whole=True).helpful(32) == 2, "a contrast of 16 stays on one worker"


def test_balance_counts_repeats_and_the_time_that_workers_wait_for_the_largest_micro_batch():
    assert Division(16, 2).balance([batch_of(16)] * 3) == (0.0, 1.0)
    assert Division(16, 3).balance([batch_of(16)]) == (0.0, pytest.approx(16 / 18))
    filler, busy = Division(1, 4).balance([batch_of(2), batch_of(4)])
    assert (filler, busy) == (2 / 8, 6 / 8)
