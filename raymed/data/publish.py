"""What is written beside the shards: index, studies, quarantine, and last the manifest, which makes them prepared data."""

from __future__ import annotations

import json
import platform
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raymed.data.acquisition import PICTURE
from raymed.data.duplicates import LAYOUT
from raymed.data.image import ImageSettings, recorded
from raymed.data.prepared import MANIFEST, Manifest, digest_of, earlier_names
from raymed.data.quarantine import Quarantine
from raymed.data.readers import digests_at_once, read_digests
from raymed.data.record import BLAKE3, input_pictures
from raymed.data.settings import CurationSettings, PrepareSettings
from raymed.data.shards import SHARDS, UNFINISHED
from raymed.data.survey import Survey, class_name
from raymed.errors import UserError
from raymed.storage.folder import Folder

UNSPLIT = "unsplit"  # the split of rows that are in none, in counts
SOMETIMES = (
    "further",
    "bytes",
    "modality",
    "pixel_spacing",
    "slice_thickness",
    "field_of_view",
)  # columns that say something of some sources only
TABLES = re.compile(r"(index|studies)-[0-9a-f]{12}\.parquet")
EARLIER = re.compile(r"manifest-[0-9a-f]{12}-[0-9a-f]{12}\.json")  # `Manifest.earlier_name`
STUDIES = pa.schema([("study", pa.string()), ("fingerprint", pa.string()), ("refused", pa.string())])


def publish(
    folder: Folder,
    index: pa.Table,
    found: Survey,
    settings: CurationSettings,
    described: dict[str, Any],
    quarantine: Quarantine,
    left_out: Mapping[str, str],
    groups: list[list[str]],
) -> Manifest:
    """Write index, studies and quarantine beside the old ones, then the manifest, then remove what nobody reads."""
    studies = pa.table(
        {
            "study": [study.study for study in found.studies],
            "fingerprint": [study.fingerprint for study in found.studies],
            "refused": [json.dumps(quarantine.of_study(study.study)) for study in found.studies],
        },
        schema=STUDIES,
    )
    index_bytes, studies_bytes, lines = _parquet(index), _parquet(studies), quarantine.to_jsonl()
    splits = [split or UNSPLIT for split in index["split"].to_pylist()]
    classes = [class_name(found.labels, label) for label in index["label"].to_pylist()]
    patients = set(zip(index["patient"].to_pylist(), classes, splits, strict=True))
    pictures = input_pictures(index)
    structured = pictures.filter(pc.is_valid(pictures["hash"]))
    manifest = Manifest(
        digest=_content_digest(index, found, settings.image, described),
        index=f"index-{digest_of(index_bytes)[:12]}.parquet",
        index_digest=digest_of(index_bytes),
        studies=f"studies-{digest_of(studies_bytes)[:12]}.parquet",
        quarantine_digest=digest_of(lines),
        source=settings.pseudonymise or str(found.listing.root),
        labels=found.labels.to_dict(),
        settings=described,
        patients=counts(((name, split) for _, name, split in patients), found.labels.names),
        slices=counts(zip(classes, splits, strict=True), found.labels.names),
        sources=counts(zip(index["source"].to_pylist(), splits, strict=True)),
        near_duplicates=groups,
        same_pixels=structured.num_rows - pc.count_distinct(structured["digest"]).as_py(),
        quarantined=quarantine.damaged,
        passed_over=len(quarantine.lines) - quarantine.damaged,
        left_out=dict(left_out),
        notes=list(found.listing.notes),
        patients_known=found.listing.patients_known,
        pictures_by=BLAKE3,
        modalities=dict(sorted(Counter(name or PICTURE for name in index["modality"].to_pylist()).items())),
        ignored=found.ignored,
        shards=dict(sorted(Counter(index["shard"].to_pylist()).items())),
        versions={name: version(name) for name in ("raymed", "numpy", "pillow", "pyarrow", "pydicom", "nibabel")}
        | {"python": platform.python_version()},
    )
    folder.write(manifest.index, index_bytes)
    folder.write(manifest.studies, studies_bytes)
    folder.write("quarantine.jsonl", lines)
    if (earlier := _manifest(folder, MANIFEST)) and earlier.earlier_name != manifest.earlier_name:
        folder.write(earlier.earlier_name, earlier.to_json())  # who begins to read is looked for once they are replaced
    folder.write(MANIFEST, manifest.to_json())
    remove_unread(folder, manifest)
    folder.delete(UNFINISHED)
    return manifest


def remove_unread(folder: Folder, manifest: Manifest) -> None:
    """Remove what neither the manifest names, nor an earlier one whose data somebody reads."""
    names = folder.names()
    earlier_manifests = [*filter(EARLIER.fullmatch, names)]
    taken = {name: folder.read(name) for name in _unread(earlier_manifests, read_digests(folder))}
    for name in taken:
        folder.delete(name)  # before what it names
    # Nobody opens those data any more; who did between the look and here had noted before that it reads them.
    gone = _unread(list(taken), digests_at_once(folder)) if taken else []
    for name in taken:
        if name not in gone:
            folder.write(name, taken[name])
    kept, shards = {manifest.index, manifest.studies}, set(manifest.shards)
    for name in earlier_manifests:
        if name in gone:
            continue
        earlier = _manifest(folder, name)
        if earlier is None:
            return  # a later raymed's: what its reader needs is not known
        kept |= {earlier.index, earlier.studies}
        shards |= earlier.shards.keys()
    for name in {*filter(TABLES.fullmatch, names)} - kept:
        folder.delete(name)
    for name in folder.child(SHARDS).names():
        if name not in shards:
            folder.delete(f"{SHARDS}/{name}")


def _unread(earlier: list[str], digests: set[str]) -> list[str]:
    """Those of the earlier manifests whose data are none that are read."""
    read = tuple(earlier_names(digest) for digest in digests)
    return [name for name in earlier if not name.startswith(read)]


def _manifest(folder: Folder, name: str) -> Manifest | None:
    """None where there is none that this raymed reads."""
    if not folder.exists(name):
        return None
    try:
        return Manifest.from_json(folder.read(name), f"{folder.uri}/{name}")
    except UserError:
        return None


def _content_digest(index: pa.Table, found: Survey, image: ImageSettings, described: dict[str, Any]) -> str:
    """Of what the rows are, not of where they lie; independent of versions and machines."""
    common = {each.name for each in fields(PrepareSettings)}
    more = {name: value for name, value in described.items() if name not in common}
    settings = [found.labels.to_dict(), recorded(image), *([more] if more else [])]
    parts = [json.dumps(settings, sort_keys=True).encode()]
    unused = {name for name in SOMETIMES if index[name].null_count == index.num_rows}
    for name in index.column_names:
        if name not in LAYOUT and name not in unused:
            parts.append(digest_of(repr((name, index[name].to_pylist())).encode()).encode())
    return digest_of(b"\0".join(parts))


def counts(pairs: Iterable[tuple[str, str]], names: Sequence[str] = ()) -> dict[str, dict[str, int]]:
    """How often each name is in each split.

    Args:
        names: those that come first, in this order; the others follow by the alphabet.
    """
    place = {name: number for number, name in enumerate(names)}
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for (name, split), count in sorted(Counter(pairs).items(), key=lambda each: (place.get(each[0][0], len(place)), each)):
        counts[name][split] = count
    return dict(counts)


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()
