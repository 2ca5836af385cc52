"""What a run does with the index before it trains, at 0.35 and 3.5 million slices: seconds and peak memory of each step.

    python benchmarks/scale.py                               # the figures of docs/log.md: a minute and 6 GiB
    python benchmarks/scale.py --sizes 7000,14000            # seconds, to try it

The data are an index without pictures: studies of 117 slices, one a patient. Each size has a process of its own. The
exponent of a step is that of the power of the number of slices by which its seconds grow: 1 is proportional.
"""

from __future__ import annotations

import math
import pickle
import re
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jsonargparse import auto_cli
from machine import show

from raymed.data.image import ImageSettings
from raymed.data.labels import LabelTable
from raymed.data.leak import guard
from raymed.data.plan import SliceSettings, plan_epoch
from raymed.data.prepare import ORDER
from raymed.data.prepared import MANIFEST, Manifest, Prepared, digest_of
from raymed.data.record import INDEX
from raymed.data.stream import Streamed

SLICES = 117  # of a study
TAKES = 1000  # micro-batches of 16 that are looked up


def main(sizes: str = "350000,3500000") -> None:
    """Measure each step at each size.

    Args:
        sizes: numbers of slices, separated by commas.
    """
    small, *_, large = counts = [int(size) for size in sizes.split(",")]
    measured = {}
    for rows in counts:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            measured[rows] = process.submit(measure, rows).result()
    figures, lines = {}, []
    for step in measured[large]:
        seconds, peaks = ([measured[rows][step][kind] for rows in counts] for kind in (0, 1))
        exponent = math.log(measured[large][step][0] / measured[small][step][0]) / math.log(large / small)
        figures[step] = {"seconds": seconds, "peak_mib": peaks, "exponent": exponent}
        lines.append(
            f"{step:<34} {' -> '.join(f'{each:.3f} s' for each in seconds)}, exponent {exponent:.2f}; "
            f"peak {' -> '.join(f'{each:.0f}' for each in peaks)} MiB"
        )
    show(f"an index of {' and '.join(map(str, counts))} slices", lines, figures)


def measure(rows: int) -> dict[str, tuple[float, float]]:
    """(seconds, peak MiB of the process) of each step with an index of so many rows."""
    with tempfile.TemporaryDirectory() as folder:
        write_index(Path(folder), rows)
        figures: dict[str, tuple[float, float]] = {}

        def step(name: str, work: Callable[[], object]) -> object:
            _forget_peak()
            started = time.perf_counter()
            result = work()
            figures[name] = time.perf_counter() - started, _peak()
            return result

        prepared = step("open", lambda: Prepared.open(folder))
        assert isinstance(prepared, Prepared)
        train, patients = prepared.rows("train"), rows // SLICES
        step("prove that nothing leaks", lambda: guard(prepared.index))
        step("choose 16 slices a patient", lambda: SliceSettings().choose(prepared, train, 0, None))
        limited = SliceSettings(limit=max(1, patients // 5))
        step("choose, a fifth of the patients", lambda: limited.choose(prepared, train, 0, None))
        step("plan an epoch", lambda: plan_epoch(SliceSettings().draw(prepared, [train], 0, 0).packs, 16, 0, 0, {}))
        some = np.random.default_rng(0).integers(0, rows, (TAKES, 16))
        step(f"look up {TAKES} micro-batches", lambda: [prepared.places(each) for each in some])
        shuffled = prepared.index.take(np.random.default_rng(0).permutation(rows))
        step("sort", lambda: shuffled.sort_by(ORDER))
        step("send to a worker", lambda: pickle.dumps(Streamed(prepared.folder.uri)))
        return figures


def write_index(folder: Path, rows: int) -> None:
    """A folder of prepared data that has no shards."""
    place = np.arange(rows)
    patient = place // SLICES
    names = pa.array([f"a hospital's name/patient-{each:07d}" for each in range(patient[-1] + 1)], pa.large_string())
    of_patients = names.take(pa.array(patient))
    draw = np.random.default_rng(0)
    splits = pa.array(["train", "train", "train", "val", "test"], pa.large_string())
    columns = {
        "id": pa.array([f"a hospital's name/patient-{row // SLICES:07d}/{row % SLICES:05d}.dcm" for row in range(rows)]),
        "patient": of_patients,
        "study": of_patients,
        "position": place % SLICES,
        "label": patient % 4,
        "source": pa.array(["a hospital's name"], pa.large_string()).take(pa.array(np.zeros(rows, np.int64))),
        "cost": np.full(rows, 448 * 448),
        "group": of_patients,
        "split": splits.take(pa.array(patient % 5)),
        "fold": patient % 5,
        "shard": pa.array([f"part-{number:06d}.parquet" for number in range(rows // 1000 + 1)]).take(
            pa.array(place // 1000)
        ),
        "row_group": place % 1000 // 2,
        "row": place % 2,
    }
    for name, width in (("digest", 16), ("hash", 32)):
        columns[name] = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), rows, [None, pa.py_buffer(draw.bytes(width * rows))]
        )
    index = pa.table({field.name: columns.get(field.name, pa.nulls(rows, field.type)) for field in INDEX}).cast(INDEX)
    pq.write_table(index, folder / "index.parquet")
    content = (folder / "index.parquet").read_bytes()
    manifest = Manifest(
        digest=digest_of(content),
        index="index.parquet",
        index_digest=digest_of(content),
        studies="",
        quarantine_digest="",
        source="made",
        labels=LabelTable.open("lung").to_dict(),
        settings={"image": asdict(ImageSettings())},
        patients={},
        slices={},
        sources={},
        near_duplicates=[],
        same_pixels=0,
        quarantined=0,
        ignored={},
        shards={},
        versions={},
    )
    (folder / MANIFEST).write_bytes(manifest.to_json())


def _forget_peak() -> None:
    """Linux: what the process has taken at most begins anew."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> float:
    """MiB that the process has taken at most; NaN where the system does not say."""
    if sys.platform != "linux":
        return math.nan
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found[1]) / 1024 if found else math.nan


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
