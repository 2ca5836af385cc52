"""Packs: thresholds, the buffer, mandatory groups, shares, and a count of everything that is left out."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from raymed.data.plan import Draw
from raymed.data.prepared import Prepared
from raymed.data.record import INDEX
from raymed.errors import UserError
from raymed.storage.folder import Folder
from raymed.systems.unimedvl.mixture import PackingSettings
from raymed.systems.unimedvl.phantoms import GROUPS

SMALL = PackingSettings(80, 100, 60, 40, 5)


def mixture(base: Prepared, costs: dict[str, list[int]], **of_groups: tuple[float, bool]) -> Prepared:
    """An index of samples without shards: a group of one data set for each name; weight 1, not mandatory unless said."""
    rows = [
        {"id": f"{name}{number}", "source": f"class/{name}/set", "cost": cost}
        for name, known in costs.items()
        for number, cost in enumerate(known)
    ]
    groups = {
        f"class/{name}": {"weight": weight, "mandatory": mandatory, "sets": ["set"]}
        for name in costs
        for weight, mandatory in [of_groups.get(name, (1.0, False))]
    }
    manifest = replace(base.manifest, settings={"groups": groups})
    return Prepared(Folder.at("/nowhere"), manifest, pa.Table.from_pylist(rows, schema=INDEX))


def draw(data: Prepared, packing: PackingSettings = SMALL, seed: int = 0, epoch: int = 0) -> Draw:
    return packing.draw(data, [np.arange(data.index.num_rows)], seed, epoch)


def seen(drawn: Draw) -> Counter[int]:
    return Counter(row for pack in drawn.packs for row in pack)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 80), min_size=1, max_size=150), st.integers(0, 6), st.integers(0, 100))
def test_no_pack_is_overfilled_and_every_sample_is_used_once_or_counted(prepared, costs, buffer, prefer) -> None:
    data = mixture(prepared, {"a": [30, *costs]})
    packing = replace(SMALL, max_buffer_size=buffer, prefer_buffer_before=prefer)
    drawn = draw(data, packing)
    costs = [30, *costs]
    assert all(0 < sum(costs[row] for row in pack) <= 100 for pack in drawn.packs)
    assert seen(drawn) == Counter(row for row, cost in enumerate(costs) if cost <= 60)
    long = sum(cost > 60 for cost in costs)
    assert drawn.left_out == ({"of class/a/set: longer than max_num_tokens_per_sample": long} if long else {})


def test_a_sequence_is_filled_up_from_what_waits_when_nothing_more_is_drawn_for_it(prepared) -> None:
    drawn = draw(mixture(prepared, {"a": [10] * 80}))
    assert {len(pack) for pack in drawn.packs} == {10} and drawn.fill_rate == 1.0
    nothing_waits = replace(SMALL, max_buffer_size=0, expected_num_tokens=71)
    assert {len(pack) for pack in draw(mixture(prepared, {"a": [10] * 80}), nothing_waits).packs} == {8}


def test_what_does_not_fit_waits_and_opens_the_next_sequence(prepared) -> None:
    data, packing = mixture(prepared, {"a": [60] * 50 + [40] * 50}), PackingSettings(100, 100, 60, 40, 50)
    filled, unbuffered = draw(data, packing).fill_rate, draw(data, replace(packing, max_buffer_size=0)).fill_rate
    assert filled is not None and unbuffered is not None and filled > 0.85 > unbuffered


def test_what_has_waited_longest_begins_and_the_longest_that_fits_fills_up(prepared) -> None:
    costs = np.random.default_rng(0).integers(5, 60, 300).tolist()
    drawn = draw(mixture(prepared, {"a": costs}), replace(SMALL, max_buffer_size=300))
    order = np.random.default_rng([0, 0, 3, 0, 0]).permutation(300).tolist()  # in which they were drawn
    for pack in drawn.packs[:20]:
        waiting, tokens = [row for row in order if row not in pack], 0
        assert pack[0] == order[0], "nobody is passed over again and again"
        for row in pack:
            longer = [costs[other] for other in waiting if costs[other] <= 100 - tokens]
            assert tokens < 40 or costs[row] >= max(longer, default=0)
            tokens += costs[row]
        order = waiting


def test_what_waits_at_the_end_is_packed_even_where_a_mandatory_sample_leaves_no_room(prepared) -> None:
    drawn = draw(mixture(prepared, {"a": [60] * 7}, a=(1.0, True)), replace(SMALL, expected_num_tokens=100))
    assert seen(drawn) == Counter(range(7))


def test_every_pack_begins_with_one_sample_of_each_mandatory_group_in_their_order(prepared) -> None:
    costs = {"b": [20] * 40, "a": [5] * 200, "c": [10] * 3}
    drawn = draw(mixture(prepared, costs, b=(0.0, True), c=(1.0, True)))
    for pack in drawn.packs:
        assert pack[0] < 40 and pack[1] >= 240  # b is first in the configuration, c last
    rest = [row for pack in drawn.packs for row in pack[2:]]
    assert min(rest) >= 40  # b has no weight: it is drawn as the mandatory sample only


def test_groups_are_drawn_by_their_weights(prepared) -> None:
    data = mixture(prepared, {"a": [1] * 3000, "b": [1] * 3000}, a=(3.0, False))
    drawn = draw(data)
    counts = seen(drawn)
    share = sum(counts[row] for row in range(3000)) / counts.total()
    assert counts.total() == 6000 and share == pytest.approx(0.75, abs=0.02)
    assert max(counts[row] for row in range(3000)) - min(counts[row] for row in range(3000)) == 1
    assert drawn.left_out == {"of class/b/set: not drawn in this epoch": 3000 - len([row for row in counts if row >= 3000])}


def test_an_epoch_is_a_function_of_seed_and_number(prepared) -> None:
    data = mixture(prepared, {"a": list(range(1, 60)), "b": [9] * 40})
    assert draw(data) == draw(data)
    assert draw(data, epoch=1).packs != draw(data).packs and draw(data, seed=1).packs != draw(data).packs


@pytest.mark.parametrize("packing", [PackingSettings(), PackingSettings(18_000, 20_000, 17_000, 16_384, 50)])
def test_sequences_of_a_mixed_set_are_filled_to_nineteen_twentieths_at_the_guides_thresholds(prepared, packing) -> None:
    costs = np.random.default_rng(0).lognormal(7.6, 1.1, 4000).astype(int).clip(20, 16_384).tolist()
    drawn = draw(mixture(prepared, {"a": costs}), packing)
    assert drawn.fill_rate is not None and drawn.fill_rate >= 0.98


@pytest.mark.parametrize(
    ("costs", "of_groups", "reason"),
    [
        ({"a": [70, 80]}, {}, "class/a: all 2 samples are longer .*the shortest has 70 tokens"),
        ({"a": [10]}, {"a": (0.0, True)}, "sum to zero"),
        ({"a": [50], "b": [60]}, {"a": (1.0, True), "b": (1.0, True)}, "class/a 50, class/b 60 tokens. exceed .* 100"),
    ],
)
def test_mixtures_that_cannot_be_packed_are_named_before_training(prepared, costs, of_groups, reason) -> None:
    with pytest.raises(UserError, match=reason):
        draw(mixture(prepared, costs, **of_groups))


def test_data_of_another_system_and_limits_that_cannot_be_are_refused(prepared) -> None:
    with pytest.raises(UserError, match="holds no sequences"):
        draw(replace(mixture(prepared, {"a": [1]}), manifest=replace(prepared.manifest, settings={})))
    with pytest.raises(UserError, match="1 <= expected <= max"):
        PackingSettings(expected_num_tokens=40_000)
    with pytest.raises(UserError, match="max_num_tokens_per_sample 40000"):
        PackingSettings(max_num_tokens_per_sample=40_000)


def test_weights_of_a_stage_are_in_place_of_the_configurations_and_name_known_groups(prepared) -> None:
    data = mixture(prepared, {"a": [1] * 3000, "b": [1] * 3000, "c": [1] * 100}, a=(3.0, True), b=(1.0, False))
    counts = seen(draw(data, replace(SMALL, weights={"class/b": 75.0, "class/c": 25.0})))
    assert not any(counts[row] for row in range(3000)), "what is not named is not drawn, mandatory or not"
    assert sum(counts[row] for row in range(3000, 6000)) / counts.total() == pytest.approx(0.75, abs=0.02)
    whole = seen(draw(data, replace(SMALL, weights={"class": 1.0})))
    assert sum(whole[row] for row in range(3000)) / whole.total() == pytest.approx(0.6, abs=0.02)
    with pytest.raises(UserError, match=r"names class/d, .* class/a, class/b, class/c"):
        draw(data, replace(SMALL, weights={"class/d": 1.0}))
    with pytest.raises(UserError, match="one of them is above 0"):
        replace(SMALL, weights={"class/a": 0.0})


def test_the_stages_of_the_curriculum_are_configurations_that_hold_for_phantoms_too() -> None:
    folder = Path(__file__).parents[3] / "configs"
    known = {key for key, _ in GROUPS.values()}
    for stage, steps in ((1, 85_000), (2, 120_000), (3, 70_000)):
        content = yaml.safe_load((folder / f"unimedvl_stage{stage}.yaml").read_text())
        assert set(content["packing"]["weights"]) <= known and content["train"]["steps"] == steps
