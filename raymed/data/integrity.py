"""Whether records are those that the index names: whose they are, their labels, and, by digest, their input pictures.

Index and shards are files of their own. What is judged goes by the index and what is learned by the shards, so both must say
the same.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raymed.data.record import input_pictures, picture_digest, records_from
from raymed.errors import UserError
from raymed.storage.folder import Folder

SAID_TWICE = ["id", "patient", "study", "position", "label", "source"]  # by a record, and by its line of the index
DESCRIBED = [*SAID_TWICE, "digest", "hash", "further"]  # columns of the index that a record is compared with


def describe(records: pa.Table, function: str) -> pa.Table:
    """What records say of themselves: the columns `SAID_TWICE`, and the `digests` of their input pictures.

    Args:
        function: of `DIGESTS`, that of the prepared data.

    Raises:
        UserError: the pixels of a picture are fewer or more than its size says.
    """
    try:
        digests = [
            [picture_digest(image.pixels, function) for image in record.images if image.role == "input"]
            or [picture_digest(None, function)]
            for record in records_from(records)
        ]
    except ValueError as error:
        raise UserError(f"the shards hold damaged pictures: {error}. Prepare the data again into an empty folder") from error
    return records.select(SAID_TWICE).append_column("digests", pa.array(digests, pa.list_(pa.binary(16))))


def require_same(described: pa.Table, lines: pa.Table, folder: Folder) -> None:
    """Refuse records that are not what the index says, in the same order.

    Args:
        described: as `describe` gives it.
        lines: of the index, with the columns `DESCRIBED` and `shard`.
        folder: of the prepared data.

    Raises:
        UserError: names the shard, the record and what differs.
    """
    pictures = input_pictures(lines).sort_by([("row", "ascending"), ("place", "ascending")])
    starts = np.searchsorted(pictures["row"].to_numpy(), np.arange(lines.num_rows + 1))
    digests = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pictures["digest"].combine_chunks())
    expected = lines.select(SAID_TWICE).append_column("digests", digests)
    for name in [*SAID_TWICE, "digests"]:
        theirs, ours = described[name], expected[name].cast(described[name].type)
        if theirs.equals(ours):
            continue
        row = next(row for row, (a, b) in enumerate(zip(theirs.to_pylist(), ours.to_pylist(), strict=True)) if a != b)
        record, shard = lines["id"][row], f"{folder.uri}/shards/{lines['shard'][row]}"
        wrong = f"its {name} is {theirs[row]}, and the index says {ours[row]}"
        if name == "digests":
            wrong = "its pixels are not those that were prepared"
        raise UserError(
            f"{shard}, record {record}: {wrong}. The shard is damaged, was exchanged, or is of an earlier raymed: "
            "remove it and prepare the data again, which reads its patients anew"
        )
