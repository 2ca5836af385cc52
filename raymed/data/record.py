"""The one row schema. A record is what a model sees at once: images, turns of text, a label, and whose they are.

Pixels are stored decoded (windowed, resized, 8 bit) and compressed by Parquet, so that an epoch costs a decompression and
not a PNG decode; the index holds every column but the pixels, and says where they lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3

from raymed.errors import RunError

IMAGE = pa.struct(
    [
        ("role", pa.string()),  # input | thumbnail (of the input at the same place) | output | mask
        ("place", pa.int32()),  # which <image> mark of the messages it fills, from 0
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("channels", pa.int32()),  # 1 grey, 3 RGB
        ("pixels", pa.large_binary()),  # uint8, row-major, height x width x channels
    ]
)

MESSAGE = pa.struct([("role", pa.string()), ("text", pa.string())])  # role: system | human | gpt

RECORD = pa.schema(
    [
        ("id", pa.string()),  # unique in the prepared data
        ("patient", pa.string()),
        ("study", pa.string()),
        ("position", pa.int32()),  # order within the study, from 0
        ("label", pa.int32()),  # class index in the label table; null = no label
        ("source", pa.string()),  # where the data came from, e.g. a hospital or a public set
        ("images", pa.list_(IMAGE)),
        ("messages", pa.list_(MESSAGE)),
        ("cost", pa.int32()),  # bytes of pixels, or tokens: what a pack is filled by
    ]
)

BLAKE3, SHA256 = "blake3", "sha256"
DIGESTS: dict[str, Callable[[], Any]] = {BLAKE3: blake3, SHA256: hashlib.sha256}
"""By which functions pictures are known: the first, and in data that an earlier raymed prepared the second."""

# What the frozen part of a network makes of a record's pictures, beside the record's other columns; of whatever shape.
FEATURES = pa.field(
    "features",
    pa.struct(
        [
            ("shape", pa.list_(pa.int32())),
            ("values", pa.large_binary()),  # float32, row-major
            ("digest", pa.binary(16)),  # of both, see `picture_digest`
        ]
    ),
)

# Texts of the index are large ones: the offsets of others end at 2 GiB a column, some ten million rows.
INDEX = pa.schema(
    [
        field.with_type(pa.large_string()) if field.type == pa.string() else field
        for field in RECORD
        if field.name not in ("images", "messages")
    ]
    + [
        pa.field("digest", pa.binary(16)),  # of the prepared pixels and their shape, as `picture_digest` makes it
        pa.field("hash", pa.binary(32)),  # 256-bit perceptual hash; null for a picture without structure
        # digest and hash of the input pictures after the first; null where there are none
        pa.field("further", pa.list_(pa.struct([("digest", pa.binary(16)), ("hash", pa.binary(32))]))),
        pa.field("modality", pa.large_string()),  # CT (Hounsfield units, windowed), CR or DX; null of other pictures
        # of the first picture, in mm, as far as its file says
        pa.field("pixel_spacing", pa.float32()),
        pa.field("slice_thickness", pa.float32()),
        pa.field("field_of_view", pa.float32()),
        pa.field("bytes", pa.int64()),  # of all pixels, where `cost` counts tokens; null where it is just that
        pa.field("group", pa.large_string()),  # patients with near-duplicate pictures share one; else the patient itself
        pa.field("split", pa.large_string()),  # train | val | test; null = not split (no label)
        pa.field("fold", pa.int32()),  # cross-validation fold of a train or val patient, from 0
        pa.field("shard", pa.large_string()),  # file name under shards/
        pa.field("row_group", pa.int32()),
        pa.field("row", pa.int32()),  # within the row group
    ]
)


@dataclass(frozen=True, slots=True)
class Image:
    """One picture of a record; `pixels` is uint8 [height, width, channels], often a read-only view of shared memory."""

    role: str
    place: int
    pixels: np.ndarray


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Record:
    """One row, ready for a recipe to encode.

    Attributes:
        label: the class index, or None.
        features: float32; what the recipe's frozen part makes of the pictures that nothing but it sees, of which only the
            sizes are left: they have no channels. None where the record has its pictures.
    """

    id: str
    patient: str
    study: str
    position: int
    label: int | None
    source: str
    images: tuple[Image, ...]
    messages: tuple[Message, ...]
    features: np.ndarray | None = None


def picture_digest(pixels: np.ndarray | None, function: str = BLAKE3) -> bytes:
    """By what a prepared picture is known: a digest of its shape and pixels, cut to 16 bytes; None stands for no picture.

    Every picture is checked by it whenever it is read, and BLAKE3 takes a third of the time of SHA-256.
    """
    digest = DIGESTS[function]()
    if pixels is not None:
        digest.update("x".join(map(str, pixels.shape)).encode() + b"\0")
        digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()[:16]


def input_pictures(index: pa.Table) -> pa.Table:
    """The input pictures of index rows, one line each: `row` and `place` within it, `digest` and `hash`.

    A row without a picture has one line, whose hash is null.
    """
    first = {"row": np.arange(index.num_rows), "place": np.zeros(index.num_rows, np.int64)}
    table = pa.table(first | {name: index[name] for name in ("digest", "hash")})
    if index["further"].null_count == index.num_rows:
        return table
    lists = index["further"].combine_chunks()
    row = pc.list_parent_indices(lists).to_numpy()
    flat = pc.list_flatten(lists)
    place = np.arange(len(row)) - np.searchsorted(row, row) + 1
    further = {"row": row, "place": place, "digest": flat.field("digest"), "hash": flat.field("hash")}
    return pa.concat_tables([table, pa.table(further)])


def with_features(records: pa.Table, features: Sequence[np.ndarray], roles: Sequence[str]) -> pa.Table:
    """Records with the features that were made of their pictures of these roles, float32, in the same order; of the pictures
    only the sizes are left."""
    place, images = records.schema.get_field_index("images"), records["images"].combine_chunks()
    pictures = images.flatten()
    made_of = pc.is_in(pictures.field("role"), pa.array(roles))
    left = {name: pictures.field(name) for name in IMAGE.names}
    left["channels"] = pc.if_else(made_of, pa.scalar(0, pa.int32()), left["channels"])
    left["pixels"] = pc.if_else(made_of, pa.scalar(b"", pa.large_binary()), left["pixels"])
    starts = np.cumsum([0, *pc.fill_null(pc.list_value_length(images), 0).to_pylist()])
    others = pa.ListArray.from_arrays(
        pa.array(starts, pa.int32()),
        pa.StructArray.from_arrays(list(left.values()), fields=list(IMAGE)),
        type=RECORD.field("images").type,
    )
    made = [
        {"shape": each.shape, "values": each.tobytes(), "digest": picture_digest(each.view(np.uint8))}
        for each in (np.ascontiguousarray(each, np.float32) for each in features)
    ]
    table = records.set_column(place, RECORD.field("images"), others)
    return table.append_column(FEATURES, pa.array(made, FEATURES.type))


def records_from(table: pa.Table | pa.RecordBatch) -> list[Record]:
    """Records of an Arrow table in `RECORD`'s schema, perhaps with `FEATURES`; pixels and features are zero-copy views of
    its buffers.

    Raises:
        RunError: features are not those that were made.
    """
    plain = {
        name: table.column(name).to_pylist()
        for name in ("id", "patient", "study", "position", "label", "source", "messages")
    }
    pictures = _pictures(table)
    features = _features(table) if FEATURES.name in table.schema.names else [None] * table.num_rows
    return [
        Record(
            id=plain["id"][row],
            patient=plain["patient"][row],
            study=plain["study"][row],
            position=plain["position"][row],
            label=plain["label"][row],
            source=plain["source"][row],
            images=pictures[row],
            messages=tuple(Message(turn["role"], turn["text"]) for turn in plain["messages"][row] or ()),
            features=features[row],
        )
        for row in range(table.num_rows)
    ]


def _features(table: pa.Table | pa.RecordBatch) -> list[np.ndarray]:
    column = table.column(FEATURES.name)
    rows = []
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        shapes, values, digests = (chunk.field(name) for name in ("shape", "values", "digest"))
        for shape, buffer, digest in zip(shapes.to_pylist(), values, digests.to_pylist(), strict=True):
            rows.append(np.frombuffer(buffer.as_buffer(), np.float32).reshape(shape))
            if picture_digest(rows[-1].view(np.uint8)) != digest:
                name = table.column("id")[len(rows) - 1]
                raise RunError(f"the features kept of the record {name} are damaged: run the same command again")
    return rows


def _pictures(table: pa.Table | pa.RecordBatch) -> list[tuple[Image, ...]]:
    column = table.column("images")
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    rows: list[tuple[Image, ...]] = []
    for chunk in chunks:
        bounds = chunk.offsets.to_numpy()
        struct = chunk.values
        roles, places = struct.field("role").to_pylist(), struct.field("place").to_pylist()
        heights, widths = struct.field("height").to_numpy(), struct.field("width").to_numpy()
        channels, pixels = struct.field("channels").to_numpy(), struct.field("pixels")
        _, offset_buffer, data = pixels.buffers()
        offsets = np.frombuffer(offset_buffer, dtype=np.int64)[pixels.offset : pixels.offset + len(pixels) + 1]
        flat = np.frombuffer(data, dtype=np.uint8) if data is not None else np.empty(0, np.uint8)

        def picture(i: int) -> Image:
            view = flat[offsets[i] : offsets[i + 1]].reshape(heights[i], widths[i], channels[i])  # noqa: B023
            return Image(roles[i], places[i], view)  # noqa: B023

        rows.extend(tuple(picture(i) for i in range(bounds[r], bounds[r + 1])) for r in range(len(chunk)))
    return rows
