"""Features on disk: Parquet shards with a manifest that says which model and layers made them from which pictures.

    FEATURES/
      manifest.json     model, settings, picture settings, shards, refused pictures; written last
      shards/*.parquet  one line per picture: PICTURE, and a column layer_<k> of vectors for each layer

The npz of other programs (`features`, `image_paths`) is read as well, and written on request.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymed.errors import UserError
from raymed.storage.folder import Folder

FORMAT = 1
MANIFEST = "manifest.json"
SHARDS = "shards"
REFUSED = b"refused"  # key of a shard's metadata

PICTURE = pa.schema(
    [
        ("id", pa.string()),
        ("patient", pa.string()),  # null = not known
        ("study", pa.string()),
        ("position", pa.int32()),  # order within the study
        ("label", pa.string()),  # class name; null = no label
        ("source", pa.string()),
        ("path", pa.string()),  # relative to the manifest's data root; null for prepared data, whose pictures have ids
        ("frame", pa.int32()),  # stored slice of a volume
    ]
)


@dataclass(frozen=True)
class FeatureManifest:
    """What features are. Those of two sets can be compared if `key` is the same.

    Attributes:
        key: digest of the ViT's weights, the settings and the picture settings.
        model: where the ViT came from.
        model_digest: names its weights.
        settings: layer, pooling, length, precision.
        layers: whose features there are, counted from the embeddings.
        width: of a vector.
        image: windowing and resizing of the pictures.
        data: where the pictures came from: kind (prepared or a source's format), root.
        shards: pictures by shard.
        refused: pictures that could not be used: id, where, patient, reason.
        format: version of this layout.
    """

    key: str
    model: str
    model_digest: str
    settings: dict[str, Any]
    layers: list[int]
    width: int
    image: dict[str, Any]
    data: dict[str, str]
    shards: dict[str, int]
    refused: list[dict[str, Any]]
    format: int = FORMAT

    def described(self) -> dict[str, str]:
        """What must be the same where distances are to mean something, in words."""
        settings = {name: str(value) for name, value in self.settings.items()}
        pictures = ", ".join(f"{name} {value}" for name, value in self.image.items())
        return {"model": f"{self.model} ({self.model_digest})", "layers": str(self.layers), **settings, "pictures": pictures}

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1).encode()

    @classmethod
    def from_json(cls, content: str | bytes, where: str) -> FeatureManifest:
        """Raises: UserError: not a manifest of features, or one of another format version."""
        try:
            values = json.loads(content)
            if values["format"] != FORMAT or values.keys() != {field.name for field in fields(cls)}:
                raise ValueError(f"format {values['format']}, this raymed reads {FORMAT}")
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{where} is no manifest of features ({error}): run jobs/extract_features.py again") from error
        if strange := [name for name in values["shards"] if PurePosixPath(name).name != name]:
            raise UserError(f"{where} names shards outside of the folder, e.g. {strange[0]!r}: extract the features again")
        return cls(**values)


@dataclass(frozen=True, eq=False)
class Features:
    """Vectors of pictures, and what is known of each picture.

    Attributes:
        name: where they were read from.
        manifest: how they were made; None for an npz of another program.
        ids: names of the pictures, object [rows]; likewise patients, sources and paths (None where it is not known).
        labels: class names, object [rows]; None without a label.
        frames: stored slice of a volume, int64 [rows]; -1 for a file with one picture.
        vectors: float32 [rows, width] by layer.
    """

    name: str
    manifest: FeatureManifest | None
    ids: np.ndarray
    patients: np.ndarray
    labels: np.ndarray
    sources: np.ndarray
    paths: np.ndarray
    frames: np.ndarray
    vectors: dict[int, np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def layers(self) -> list[int]:
        """Layers that there are features of, ascending; [-1] for an npz that does not say."""
        return sorted(self.vectors)

    @property
    def pictures(self) -> np.ndarray:
        """Names that no other picture has, wherever it lies: object [rows]."""
        root = self.manifest.data["root"] if self.manifest else ""
        return _objects([f"{root}\0{name}" for name in self.ids])

    @property
    def owners(self) -> np.ndarray:
        """Whose each picture is, object [rows]; where no patient is known, a picture is on its own."""
        known = self.patients != None  # noqa: E711
        return np.where(known, self.patients, self.pictures)

    @property
    def width(self) -> int:
        """Of a vector."""
        return int(self.vectors[self.layers[-1]].shape[1])

    @property
    def digest(self) -> str:
        """Names the content: BLAKE2b of pictures and vectors, 16 hexadecimal digits."""
        digest = hashlib.blake2b(repr(list(zip(self.ids, self.patients, self.labels, strict=True))).encode(), digest_size=8)
        for layer in self.layers:
            digest.update(np.ascontiguousarray(self.vectors[layer]).data)
        return digest.hexdigest()

    @classmethod
    def open(cls, uri: str) -> Features:
        """The features in a folder that `jobs/extract_features.py` wrote, or in an npz.

        Raises:
            UserError: there are none, a shard is missing or damaged, or vectors are not numbers.
        """
        found = _open_npz(Path(uri).expanduser()) if uri.endswith(".npz") else _open_folder(Folder.at(uri))
        if not len(found):
            raise UserError(f"{uri} holds no features: no picture could be used")
        for layer, vectors in found.vectors.items():
            if wrong := np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist():
                raise UserError(f"{uri}: the features of {found.ids[wrong[0]]} (layer {layer}) are not numbers")
        return found

    def take(self, rows: np.ndarray) -> Features:
        """Some of the pictures: row numbers, [n]."""
        columns = {name: getattr(self, name)[rows] for name in ("ids", "patients", "labels", "sources", "paths", "frames")}
        vectors = {layer: each[rows] for layer, each in self.vectors.items()}
        return Features(self.name, self.manifest, **columns, vectors=vectors)

    def require_manifest(self) -> FeatureManifest:
        """How they were made.

        Raises:
            UserError: they do not say so.
        """
        if self.manifest is None:
            raise UserError(f"{self.name} does not say which model it is of: take features of jobs/extract_features.py")
        return self.manifest

    def require_layer(self, layer: int) -> int:
        """A layer that there are features of.

        Raises:
            UserError: there are none of it.
        """
        if layer not in self.layers:
            raise UserError(f"{self.name} has features of the layers {', '.join(map(str, self.layers))}, not of {layer}")
        return layer

    def require_like(self, other: Features) -> None:
        """Make sure that distances between these features and the other ones mean something.

        Raises:
            UserError: they are of another model, layer, pooling or picture treatment; says which.
        """
        if self.manifest is not None and other.manifest is not None and self.manifest.key != other.manifest.key:
            mine, theirs = self.manifest.described(), other.manifest.described()
            wrong = [f"{name} {theirs[name]} there, {mine[name]} here" for name in mine if mine[name] != theirs[name]]
            raise UserError(
                f"{self.name} and {other.name} cannot be compared: {'; '.join(wrong)}. Extract both with the same model, "
                "settings and picture size"
            )
        if (self.layers, self.width) != (other.layers, other.width):
            shapes = [f"{each.name}: layers {each.layers}, {each.width} wide" for each in (self, other)]
            raise UserError(f"these features cannot be compared: {'; '.join(shapes)}. Extract both alike")


def write_shard(folder: Folder, name: str, rows: pa.Table, refused: Sequence[dict[str, Any]]) -> None:
    """Write a shard whole.

    Args:
        rows: `PICTURE`, and a column for each layer.
        refused: pictures of the shard that could not be used.
    """
    sink = pa.BufferOutputStream()
    described = rows.replace_schema_metadata({REFUSED: json.dumps(list(refused)).encode()})
    pq.write_table(described, sink, compression="zstd", compression_level=1, use_dictionary=False, write_statistics=False)
    folder.write(f"{SHARDS}/{name}", sink.getvalue())


def shard_outcome(folder: Folder, name: str) -> tuple[int, list[dict[str, Any]]]:
    """Pictures in a shard that is there already, and those that it refused.

    Raises:
        UserError: it is damaged.
    """
    try:
        file = pq.ParquetFile(folder.open(f"{SHARDS}/{name}"))
        return file.metadata.num_rows, json.loads(file.schema_arrow.metadata[REFUSED])
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder.uri}/{SHARDS}/{name} is damaged ({error}): remove it and run the command again") from error


def layer_column(layer: int) -> str:
    """Name of the column with a layer's vectors."""
    return f"layer_{layer}"


def write_npz(features: Features, path: Path, root: str) -> None:
    """Write the last layer's features with the keys that other programs read, features and image_paths; and patients, labels
    and the manifest besides.

    Raises:
        UserError: the file cannot be written.
    """
    paths = [str(Path(root) / path) if path else name for path, name in zip(features.paths, features.ids, strict=True)]
    content = io.BytesIO()
    np.savez(
        content,
        features=features.vectors[features.layers[-1]],
        image_paths=np.array(paths),
        patients=np.array([patient or "" for patient in features.patients]),
        labels=np.array([label or "" for label in features.labels]),
        manifest=np.array(features.manifest.to_json().decode() if features.manifest else ""),
    )
    Folder.at(path.parent).write(path.name, content.getvalue())


def _open_folder(folder: Folder) -> Features:
    if not folder.exists(MANIFEST):
        raise UserError(f"{folder.uri} holds no features, for it has no {MANIFEST}: run jobs/extract_features.py")
    manifest = FeatureManifest.from_json(folder.read(MANIFEST), f"{folder.uri}/{MANIFEST}")
    vectors = pa.list_(pa.float32(), manifest.width)
    schema = pa.schema([*PICTURE, *(pa.field(layer_column(layer), vectors) for layer in manifest.layers)])
    tables = [schema.empty_table()]
    for name, rows in manifest.shards.items():
        try:
            table = pq.read_table(folder.open(f"{SHARDS}/{name}")).replace_schema_metadata().cast(schema)
        except (OSError, pa.ArrowInvalid, ValueError) as error:
            raise UserError(f"cannot read {folder.uri}/{SHARDS}/{name}: {error}. Extract the features again") from error
        if table.num_rows != rows:
            raise UserError(
                f"{folder.uri}/{SHARDS}/{name} has {table.num_rows} rows, not {rows}: extract the features again"
            )
        tables.append(table)
    table = pa.concat_tables(tables).combine_chunks()
    columns = {name: _objects(table[name].to_pylist()) for name in ("id", "patient", "label", "source", "path")}
    return Features(
        name=folder.uri,
        manifest=manifest,
        ids=columns["id"],
        patients=columns["patient"],
        labels=columns["label"],
        sources=columns["source"],
        paths=columns["path"],
        frames=table["frame"].fill_null(-1).to_numpy().astype(np.int64),
        vectors={
            layer: table[layer_column(layer)].combine_chunks().flatten().to_numpy().reshape(-1, manifest.width)
            for layer in manifest.layers
        },
    )


def _open_npz(path: Path) -> Features:
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
    except (OSError, ValueError, BadZipFile, zlib.error) as error:
        raise UserError(f"cannot read the features {path}: {error}") from error
    if absent := [name for name in ("features", "image_paths") if name not in content]:
        raise UserError(f"{path} lacks {', '.join(absent)}; it has {', '.join(content) or 'nothing'}")
    vectors, paths = content["features"].astype(np.float32), content["image_paths"].astype(str).tolist()
    if vectors.ndim != 2 or len(vectors) != len(paths):
        raise UserError(f"{path}: features {vectors.shape} do not go with {len(paths)} image_paths")
    manifest = None
    if str(content.get("manifest", "")):
        manifest = FeatureManifest.from_json(str(content["manifest"]), str(path))
    labels = [label or None for label in content["labels"].tolist()] if "labels" in content else list(map(_parent, paths))
    patients = [name or None for name in content["patients"].tolist()] if "patients" in content else [None] * len(paths)
    if len(labels) != len(paths) or len(patients) != len(paths):
        raise UserError(f"{path}: {len(labels)} labels and {len(patients)} patients for {len(paths)} image_paths")
    names = _objects(paths)
    return Features(
        name=str(path),
        manifest=manifest,
        ids=names,
        patients=_objects(patients),
        labels=_objects(labels),
        sources=_objects([""] * len(paths)),
        paths=names,
        frames=np.full(len(paths), -1),
        vectors={manifest.layers[-1] if manifest else -1: vectors},
    )


def _parent(path: str) -> str | None:
    """Name of the folder that a picture lies in, however its system writes paths."""
    parts = [part for part in re.split(r"[\\/]", path) if part]
    return parts[-2] if len(parts) > 1 else None


def _objects(values: list[Any]) -> np.ndarray:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found
