"""Where records lie in the shards of a folder of prepared data, and reading them from there."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymed import clock
from raymed.data.integrity import DESCRIBED, describe, require_same
from raymed.data.record import BLAKE3, RECORD
from raymed.errors import UserError
from raymed.storage.folder import Folder

LOCATED = ["shard", "row_group", "row", *DESCRIBED]  # columns of the index by which a record is found and checked
PAUSES = (1.0, 3.0, 9.0)  # seconds before an object store that refused is asked again, beyond what Arrow's own client tries
OPEN_SHARDS = 16  # kept by a process: opening one costs as much as reading a row, and holds about a MiB


@dataclass(frozen=True)
class Places:
    """The places of some records in the shards of a folder, in an order.

    Attributes:
        folder: of the prepared data.
        lines: what the index says of the records, columns `LOCATED`.
        pictures_by: as in the manifest.
    """

    folder: Folder
    lines: pa.Table
    pictures_by: str

    @classmethod
    def of(cls, folder: Folder, index: pa.Table, rows: np.ndarray | Sequence[int], pictures_by: str = BLAKE3) -> Places:
        """The places of rows of an index."""
        return cls(folder, index.select(LOCATED).take(pa.array(np.asarray(rows, dtype=np.int64))), pictures_by)

    def read(self) -> pa.Table:
        """The records as a table in `RECORD`'s schema, in the given order. Each row group that holds one is read once, those
        of a shard together: on an object store each read is a request.

        Raises:
            UserError: a shard is missing, damaged or exchanged.
        """
        columns = self.lines.select(["shard", "row_group", "row"]).to_pydict()
        groups: dict[str, dict[int, list[int]]] = {}
        for asked, (shard, row_group) in enumerate(zip(columns["shard"], columns["row_group"], strict=True)):
            groups.setdefault(shard, {}).setdefault(row_group, []).append(asked)
        tables: list[pa.Table] = []
        order: list[int] = []
        for shard, row_groups in groups.items():
            table, counts = _read_row_groups(self.folder, shard, list(row_groups))
            chosen, start = list[int](), 0
            for asked_rows, count in zip(row_groups.values(), counts, strict=True):
                for asked in asked_rows:
                    if columns["row"][asked] >= count:
                        raise UserError(
                            f"{self.folder.uri}/shards/{shard} does not hold the record {self.lines['id'][asked]} that the "
                            "index names: damaged or exchanged. Remove it and prepare the data again"
                        )
                    chosen.append(start + columns["row"][asked])
                order.extend(asked_rows)
                start += count
            tables.append(table.take(chosen))
        found = pa.concat_tables(tables) if tables else RECORD.empty_table()
        found = found if order == sorted(order) else found.take(np.argsort(order))
        require_same(describe(found, self.pictures_by), self.lines, self.folder)
        return found

    def reach(self) -> pa.Table:
        """As `read`, of records that were there: where their folder is not, its storage is away.

        Raises:
            OSError: it is away.
        """
        try:
            return self.read()
        except UserError:
            if self.folder.is_local and not self.folder.names():  # object stores have no folders
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.folder.uri) from None
            raise


def _read_row_groups(folder: Folder, shard: str, row_groups: list[int]) -> tuple[pa.Table, list[int]]:
    """Row groups of a shard, one below the other, and how many rows each has; 0 where there is none. A busy object store is
    asked again."""
    pauses = iter((0.0,) if folder.is_local else PAUSES)  # a file that was open while its server was away is opened anew
    while True:
        try:
            file = _open_shard(folder.uri, shard)
            there = [each for each in row_groups if each < file.num_row_groups]
            table = file.read_row_groups(there, use_threads=False)
            return table, [file.metadata.row_group(each).num_rows if each in there else 0 for each in row_groups]
        except (OSError, pa.ArrowException) as error:
            _open_shard.cache_clear()
            pause, is_gone = next(pauses, None), isinstance(error, FileNotFoundError) and not folder.is_local
            if pause is None or is_gone or isinstance(error, pa.ArrowException):
                raise UserError(
                    f"cannot read the shard {folder.uri}/shards/{shard}: {error}. Remove it, where it is there, "
                    "and prepare the data again, which reads its patients anew"
                ) from error
            clock.sleep(pause)


@lru_cache(maxsize=OPEN_SHARDS)
def _open_shard(folder: str, shard: str) -> pq.ParquetFile:
    return pq.ParquetFile(Folder.at(folder).open(f"shards/{shard}"))
