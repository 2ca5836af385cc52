"""Where features go, and what is said of computing them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raymed.errors import UserError
from raymed.job.job import Outcome
from raymed.retrieval.features import FeatureManifest, Features, write_npz
from raymed.storage.folder import Folder

if TYPE_CHECKING:
    from raymed.retrieval.input import Opened


@dataclass(frozen=True)
class Destination:
    """Where features are written.

    Attributes:
        folder: or URI.
        npz: one file beside it; None where none is asked for.
    """

    folder: str
    npz: Path | None

    @classmethod
    def of(cls, out: str, format: str) -> Destination:
        """A folder; with an npz where its name ends so, or the format says so.

        Raises:
            UserError: an npz cannot be written there.
        """
        folder, wanted = out.removesuffix(".npz"), format == "npz" or out.endswith(".npz")
        if wanted and not Folder.at(folder).is_local:
            raise UserError(f"an npz is written to a local disk: give a local --out, or {folder} without it")
        return cls(folder, Path(folder + ".npz").expanduser().resolve() if wanted else None)


def plan(layers: tuple[int, ...], opened: Opened, out: Destination) -> Outcome:
    """What would be computed."""
    text = f"would compute layers {list(layers)} of {opened.pictures} pictures into {out.folder}"
    return Outcome(text, {"pictures": opened.pictures})


def summary(manifest: FeatureManifest, kept: int, opened: Opened, out: Destination) -> Outcome:
    """What was computed; writes the npz.

    Args:
        kept: parts that were there.
    """
    found, where = sum(manifest.shards.values()), Folder.at(out.folder).uri
    lines = [f"处理 {each['where']} 时出错: {each['reason']}" for each in manifest.refused]
    lines += [
        f"特征形状: ({found}, {manifest.width}) of layers {manifest.layers}; {kept} of {len(opened.parts)} parts were there"
    ]
    if out.npz is not None:
        write_npz(Features.open(out.folder), out.npz, opened.data["root"])
        lines += [f"特征已保存到 {out.npz}"]
    lines += [f"features: {where}"]
    data = {"out": where, "pictures": found, "kept_parts": kept}
    return Outcome("\n".join(lines), data | {name: getattr(manifest, name) for name in ("layers", "width", "refused")})
