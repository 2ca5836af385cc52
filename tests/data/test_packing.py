"""Mixing and packing: samples as often as their data set says, in sequences that hold them, in the same order every time."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import write_prepared
from hypothesis import given, settings
from hypothesis import strategies as st

from raymed.data.packing import MixtureSettings, pack
from raymed.data.plan import EpochPlan, plan_epoch
from raymed.data.prepared import Prepared
from raymed.data.record import INDEX
from raymed.errors import UserError
from raymed.storage.folder import Folder


def corpus(base: Prepared, costs: list[int], sources: list[str], times: dict[str, float]) -> Prepared:
    """An index of samples without shards."""
    samples = enumerate(zip(costs, sources, strict=True))
    rows = [{"id": f"s{number}", "source": source, "cost": cost} for number, (cost, source) in samples]
    datasets = {name: {"repeat_time": repeat} for name, repeat in times.items()}
    manifest = replace(base.manifest, settings={"datasets": datasets})
    return Prepared(Folder.at("/nowhere"), manifest, pa.Table.from_pylist(rows, schema=INDEX))


def plan(mixture: MixtureSettings, data: Prepared, epoch: int = 0, seed: int = 0, global_batch: int = 4) -> EpochPlan:
    drawn = mixture.draw(data, [np.arange(data.index.num_rows)], seed, epoch)
    return plan_epoch(drawn.packs, global_batch, seed, epoch, drawn.left_out, drawn.fill_rate)


def rows_of(made: EpochPlan) -> list[int]:
    return [row for batch in made.batches for each in batch for row in each]


@given(st.lists(st.integers(1, 100), max_size=200), st.integers(100, 150))
def test_packing_loses_nothing_repeats_nothing_and_never_overfills(costs, capacity) -> None:
    packs = pack(np.array(costs, dtype=np.int64), capacity)
    assert sorted(place for each in packs for place in each) == list(range(len(costs)))
    assert all(0 < sum(costs[place] for place in each) <= capacity for each in packs)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.sampled_from("abc")), min_size=1, max_size=120),
    st.tuples(st.sampled_from([0.5, 1, 2]), st.integers(1, 3), st.integers(1, 4)),
    st.booleans(),
    st.integers(0, 3),
)
def test_an_epoch_shows_every_sample_as_often_as_its_set_says(prepared, samples, times, packing, epoch) -> None:
    costs, sources = [cost for cost, _ in samples], [source for _, source in samples]
    data = corpus(prepared, costs, sources, dict(zip("abc", times, strict=True)))
    made = plan(MixtureSettings(packing=packing, max_tokens=60), data, epoch)
    expected = {row: max(1, int(times["abc".index(source)])) for row, source in enumerate(sources)}
    assert Counter(rows_of(made)) == expected
    assert made.rows == sum(expected.values())
    assert made == plan(MixtureSettings(packing=packing, max_tokens=60), data, epoch)


def test_root_weights_bring_small_sets_forward_and_count_what_is_not_drawn(prepared) -> None:
    data = corpus(prepared, [10] * 500, ["large"] * 400 + ["small"] * 100, {})
    made = plan(MixtureSettings(weights="sqrt", max_tokens=100), data)
    counts = Counter("large" if row < 400 else "small" for row in rows_of(made))
    assert counts == {"large": 333, "small": 167}  # 500 in all, as 20 to 10
    assert made.left_out == {"not drawn in this epoch": 67}
    assert set(rows_of(made)) != set(rows_of(plan(MixtureSettings(weights="sqrt", max_tokens=100), data, epoch=1)))


def test_a_mixed_set_fills_its_sequences_and_the_order_changes_with_the_epoch_only(prepared) -> None:
    draw = np.random.default_rng(0)
    costs = np.concatenate([draw.integers(300, 420, 6000), draw.integers(60, 300, 2000), draw.integers(1400, 3600, 2000)])
    data = corpus(prepared, costs.tolist(), ["s"] * len(costs), {})
    first, again, other = (plan(MixtureSettings(), data, epoch) for epoch in (0, 0, 1))
    assert first == again != other
    assert first.fill_rate is not None and first.fill_rate >= 0.95
    tokens = sum(costs[row] for row in rows_of(first))
    assert first.fill_rate == pytest.approx(tokens / (4096 * sum(map(len, first.batches))))
    neighbours = np.diff(rows_of(first))
    assert np.abs(neighbours).mean() > 1000, "packs are not drawn from all over the set"


def test_without_packing_every_sample_is_a_sequence_and_no_fill_rate_is_told(prepared) -> None:
    made = plan(MixtureSettings(packing=False), corpus(prepared, [10, 20, 30], ["s"] * 3, {}))
    assert sorted(each for batch in made.batches for each in batch) == [(0,), (1,), (2,)]
    assert made.fill_rate is None


@pytest.mark.parametrize("packing", [True, False])
def test_samples_longer_than_a_sequence_are_refused_by_name(prepared, packing) -> None:
    data = corpus(prepared, [10, 5000, 4097], ["s"] * 3, {})
    with pytest.raises(UserError, match=r"2 samples are longer .* 4096 tokens: s1 \(5000\), s2 \(4097\)"):
        plan(MixtureSettings(packing=packing), data)


def test_a_run_trains_on_the_packs_of_its_mixture_and_is_judged_on_every_sample(tmp_path: Path) -> None:
    from raymed.systems.toy.recipe import ToyRecipe
    from raymed.training.engine import TrainSettings
    from raymed.training.spec import RunSpec

    data = write_prepared(tmp_path / "data")
    size = int(data.index["cost"][0].as_py())
    spec = RunSpec(
        "run", "", "", ToyRecipe(("a", "b"), 28), TrainSettings(global_batch=2), MixtureSettings(max_tokens=3 * size)
    )
    made = spec.plan(data, 0)
    assert sorted(rows_of(made)) == data.rows("train").tolist()
    assert {len(each) for batch in made.batches for each in batch} == {3}
    assert spec.rows(data, "val").tolist() == data.rows("val").tolist()
