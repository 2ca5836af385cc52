"""From pictures to features: Ray Data decodes on every CPU, actors hold the ViT, and each part of the pictures is a shard.

A shard is written whole by the actor that computed it, so that a killed run loses the parts under way and no more: the same
command finds the finished ones by their names, which are digests of pictures and settings.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raymed.data.image import ImageSettings, recorded
from raymed.data.progress import ReadingProgress
from raymed.data.sources import Refusal
from raymed.data.stream import ahead
from raymed.errors import RunError, UserError
from raymed.evaluation.predict import to_record
from raymed.models.features import FeatureExtractor, FeatureSettings
from raymed.models.vision_tower import VisionTower
from raymed.recipes.pictures import stack_pictures
from raymed.retrieval.features import (
    MANIFEST,
    PICTURE,
    SHARDS,
    FeatureManifest,
    layer_column,
    shard_outcome,
    write_shard,
)
from raymed.retrieval.parts import Decoded, Part
from raymed.storage.folder import Folder

log = logging.getLogger("raymed")


@dataclass(frozen=True)
class Work:
    """What turns pictures into features.

    Attributes:
        tower: the ViT, resized for the pictures.
        settings: which features.
        image: how the pictures are brought to the ViT's size.
    """

    tower: VisionTower
    settings: FeatureSettings
    image: ImageSettings

    @property
    def key(self) -> str:
        """Features with the same key can be compared."""
        described = repr((self.tower.digest, self.tower.size, self.tower.patch, self.settings, self.image))
        return hashlib.blake2b(described.encode(), digest_size=8).hexdigest()

    def manifest(
        self, data: dict[str, str], shards: dict[str, int] | None = None, refused: list[dict[str, Any]] | None = None
    ) -> FeatureManifest:
        """What says so beside the features."""
        config: Any = self.tower.config
        return FeatureManifest(
            key=self.key,
            model=self.tower.source,
            model_digest=self.tower.digest,
            settings=asdict(self.settings),
            layers=list(self.settings.layers(self.tower.layers)),
            width=config.hidden_size,
            image=recorded(self.image),
            data=data,
            shards=shards or {},
            refused=refused or [],
        )


@dataclass(frozen=True)
class Outcome:
    """A shard that was written: its name, how many pictures it holds, and which ones it refused."""

    shard: str
    pictures: int
    refused: list[dict[str, Any]]


def extract(
    work: Work,
    parts: Sequence[Part],
    data: dict[str, str],
    out: str,
    workers: int = 1,
    micro_batch: int = 32,
    refused: Sequence[Refusal] = (),
) -> tuple[FeatureManifest, int]:
    """Bring the folder `out` in line with the pictures; the manifest, and how many parts were there already.

    Args:
        data: where the pictures come from, for the manifest.
        workers: 1 computes in this process; more start Ray actors, each with a GPU where there are GPUs.
        micro_batch: pictures that the ViT sees at once.
        refused: pictures that were refused when they were listed.

    Raises:
        UserError: `out` holds other features, cannot be written to, or there are too few CPUs or GPUs.
    """
    for name, count in (("micro-batch", micro_batch), ("workers", workers)):
        if count < 1:
            raise UserError(f"--{name} is {count}: it must be at least 1")
    folder, key = Folder.at(out), work.key
    _require_own(folder, work.manifest(data))
    names = {f"{key}-{part.digest}.parquet": part for part in parts}
    there = set(folder.child(SHARDS).names())
    todo = {name: part for name, part in names.items() if name not in there}
    outcomes = {name: Outcome(name, *shard_outcome(folder, name)) for name in names if name not in todo}
    progress = ReadingProgress(sum(len(part.rows) for part in todo.values()))
    for outcome in _spread(work, todo, folder, workers, micro_batch):
        outcomes[outcome.shard] = outcome
        progress.add(outcome.pictures + len(outcome.refused))
    if len(outcomes) != len(names):
        raise RunError(f"{len(names)} parts were asked for and {len(outcomes)} computed: run the command again")
    manifest = work.manifest(
        data,
        {name: outcomes[name].pictures for name in names},
        [asdict(each) for each in refused] + [refusal for name in names for refusal in outcomes[name].refused],
    )
    folder.write(MANIFEST, manifest.to_json())
    for name in set(folder.child(SHARDS).names()) - names.keys():  # of pictures that are not there any more
        folder.child(SHARDS).delete(name)
    return manifest, len(names) - len(todo)


def compute(
    extractor: FeatureExtractor, decoded: Sequence[np.ndarray], micro_batch: int, device: torch.device
) -> np.ndarray:
    """Features float32 [layers, rows, width] of pictures, uint8 [size, size, 1 or 3] each."""
    found = [np.empty((len(extractor.layers), 0, extractor.width), np.float32)]
    for start in range(0, len(decoded), micro_batch):
        some = [to_record("", "", "", 0, picture) for picture in decoded[start : start + micro_batch]]
        pixels = torch.from_numpy(stack_pictures(some, len(decoded[0])))
        found.append(extractor(pixels.to(device)).cpu().numpy())
    return np.concatenate(found, axis=1)


class Worker:
    """A ViT on this process's device, which writes shards."""

    def __init__(self, extractor: FeatureExtractor, folder: Folder, micro_batch: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.extractor = extractor.on(self.device)
        self.folder, self.micro_batch = folder, micro_batch

    def write(self, name: str, part: Part, decoded: Decoded) -> Outcome:
        """Compute a part's features and write them as a shard.

        Raises:
            RunError: a feature is not a number.
            UserError: the shard cannot be written.
        """
        good = [place for place, each in enumerate(decoded) if not isinstance(each, Refusal)]
        refused = [asdict(each) for each in decoded if isinstance(each, Refusal)]
        pictures = [each for each in decoded if not isinstance(each, Refusal)]
        found = compute(self.extractor, pictures, self.micro_batch, self.device)
        if len(wrong := np.flatnonzero(~np.isfinite(found).all(axis=(0, 2)))):
            raise RunError(
                f"the model's features of {part.rows[good[wrong[0]]]['id']} are not numbers: choose another model"
            )
        rows = pa.Table.from_pylist([part.rows[place] for place in good], schema=PICTURE)
        for layer, vectors in zip(self.extractor.layers, found, strict=True):
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self.extractor.width)
            rows = rows.append_column(layer_column(layer), column)
        write_shard(self.folder, name, rows, refused)
        return Outcome(name, len(good), refused)


class _Actor:
    """A `Worker` for Ray Data, which keeps of an exception nothing but a long text: failures travel as values."""

    def __init__(self, stored: Any, folder: Folder, micro_batch: int) -> None:
        import ray

        torch.set_num_threads(1)  # one CPU each, as asked of Ray
        self.worker = Worker(ray.get(stored[0]), folder, micro_batch)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            outcome: Any = self.worker.write(batch["name"][0], batch["part"][0], batch["decoded"][0])
        except (UserError, RunError) as error:
            outcome = error
        return {"outcome": _one(outcome)}


def _spread(work: Work, parts: dict[str, Part], folder: Folder, workers: int, micro_batch: int) -> Iterator[Outcome]:
    if not parts:
        return
    extractor = FeatureExtractor(work.tower, work.settings)
    if workers == 1:
        worker = Worker(extractor, folder, micro_batch)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            loaded = ((name, part, part.load(pool.map)) for name, part in parts.items())
            # beside a GPU; CPUs that decode and compute at once only wait for each other
            for name, part, decoded in ahead(loaded) if worker.device.type == "cuda" else loaded:
                yield worker.write(name, part, decoded)
        return
    import ray
    import ray.data

    from raymed.cluster import connection as cluster

    cluster.connect()
    have = ray.cluster_resources()
    kind = "GPU" if have.get("GPU", 0) else "CPU"
    limits: dict[str, Any] = {"num_gpus": 1, "num_cpus": 0} if kind == "GPU" else {"num_cpus": 1}
    # where actors take CPUs, one is left for decoding
    if workers > have.get(kind, 0) - (kind == "CPU"):
        rest = ", of which one is left for decoding" if kind == "CPU" else ""
        raise UserError(
            f"{workers} workers need a {kind} each and the cluster has {have.get(kind, 0):.0f}{rest}: lower --workers"
        )
    rows = [{"name": name, "part": part} for name, part in parts.items()]
    outcomes = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(_load, batch_size=1, batch_format="numpy")
        .map_batches(
            _Actor,
            fn_constructor_args=([ray.put(extractor)], folder, micro_batch),
            compute=ray.data.ActorPoolStrategy(size=workers),
            batch_size=1,
            batch_format="numpy",
            **limits,
        )
    )
    for batch in outcomes.iter_batches(batch_size=1, batch_format="numpy"):
        outcome = batch["outcome"][0]
        if isinstance(outcome, Exception):
            raise outcome
        yield outcome


def _load(batch: Any) -> Any:
    return batch | {"decoded": _one(batch["part"][0].load(map))}


def _one(value: Any) -> np.ndarray:
    """A column of one object."""
    column = np.empty(1, dtype=object)
    column[0] = value
    return column


def _require_own(folder: Folder, manifest: FeatureManifest) -> None:
    """A folder of finished features is not silently turned into others."""
    if not folder.exists(MANIFEST):
        return
    old = FeatureManifest.from_json(folder.read(MANIFEST), f"{folder.uri}/{MANIFEST}")
    if (old.key, old.data) != (manifest.key, manifest.data):
        there, here = old.described() | old.data, manifest.described() | manifest.data
        wrong = [
            f"{name} {there.get(name)} there, {here.get(name)} asked for" for name in here if here[name] != there.get(name)
        ]
        raise UserError(f"{folder.uri} holds other features: {'; '.join(wrong)}. Choose another --out")
