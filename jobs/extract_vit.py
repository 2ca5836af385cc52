"""Take the ViT out of a trained model: a folder that transformers loads without raymed, for features or other networks.

    python jobs/extract_vit.py --model models:/raymed-lung@champion --out VIT
    python jobs/extract_vit.py CHECKPOINT VIT                                         # the same in the guide's words
    python jobs/extract_vit.py --model InternVL2_5-1B --out VIT --layout internvl    # InternVL's own names
    python jobs/extract_vit.py --model CHECKPOINT/pytorch_model.bin --out VIT.pth    # a single file has InternVL's own names
    python jobs/extract_vit.py --model InternVL2_5-1B --out VIT --size 512 --patch 16    # positions and patches resized

A CPU will do: nothing but the ViT's own tensors is touched. What is left out is listed in VIT/extracted.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from raymed.job.command_line import Alias
from raymed.job.job import JobOptions, Outcome, run
from raymed.models.settings import Layout
from raymed.storage.folder import require_other

GUIDE = {"checkpoint": Alias("model"), "output": Alias("out")}


@dataclass(frozen=True, kw_only=True)
class ExtractVit(JobOptions):
    """Options of taking the ViT out.

    Attributes:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID, a checkpoint, a model folder, or a file of weights.
        out: The folder to write; or a file that ends in .pth, .bin or .safetensors, which gets the weights alone.
        layout: Names of the weights: native for transformers, internvl as in InternVL's and ViTP's own code (default:
            internvl for a single file of an InternViT, native otherwise).
        size: Side of the pictures that it is to be used for, in pixels (default: as trained).
        patch: Side of its patches, in pixels (default: as trained).
    """

    BARE: ClassVar[tuple[str, ...]] = ("model", "out")

    model: str
    out: str
    layout: Layout | None = None
    size: int | None = None
    patch: int | None = None


def main(options: ExtractVit) -> Outcome:
    from raymed.registry.address import open_tower

    require_other(options.out, options.model)
    tower = open_tower(options.model, options.tracking)
    tower = tower.resized(options.size or tower.size, options.patch)
    out = Path(options.out).expanduser().resolve()
    layout = options.layout or tower.usual_layout(out)
    if not options.dry_run:
        tower.write(out, layout)
    left_out = ", ".join(f"{part} ({len(keys)} tensors)" for part, keys in tower.left_out.items()) or "nothing"
    lines = [
        f"{tower.config.model_type}: {tower.layers} blocks, patches of {tower.patch}, pictures of {tower.size} pixels",
        f"taken: {len(tower.state)} tensors; left out: {left_out}",
        "dry run: nothing was written" if options.dry_run else f"the ViT, {layout}: {out}",
    ]
    return Outcome("\n".join(lines), {"out": str(out)} | tower.origin())


if __name__ == "__main__":
    run(ExtractVit, main, aliases=GUIDE)
