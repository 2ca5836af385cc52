"""Features of pictures: one vector each from a ViT, with the picture's patient and label, to be searched or classified.

    python jobs/extract_features.py --model VIT --input PREPARED --split train --out runs/gallery
    python jobs/extract_features.py --model models:/raymed-lung@champion --input IMAGES --out runs/gallery --workers 8
    python jobs/extract_features.py --model VIT --input IMAGES --out runs/sweep --features.sweep 3    # three layers
    python jobs/extract_features.py --image_dir data/train --output gallery.npz --vit_checkpoint vitp_vit.pth

A CPU will do for small ViTs and few pictures. Pictures are prepared data, patient folders, class folders, a CSV, DICOM or
NIfTI. What cannot be read is listed, not fatal; a job that was interrupted goes on when it is started again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from raymed.errors import UserError
from raymed.job.command_line import Alias
from raymed.job.job import JobOptions, Outcome, run
from raymed.models.settings import FeatureSettings
from raymed.retrieval.input import Input
from raymed.storage.folder import Folder

log = logging.getLogger("raymed")

GUIDE = {
    "image-dir": Alias("input"),
    "output": Alias("out"),
    "vit-checkpoint": Alias("model"),
    "batch-size": Alias("micro_batch"),
    "select-layer": Alias("features.layer"),
}


@dataclass(frozen=True, kw_only=True)
class ExtractFeatures(JobOptions, Input):
    """Options of computing features.

    Attributes:
        model: A ViT (jobs/extract_vit.py), or any model that has one: a folder, a file, models:/NAME@ALIAS, runs:/RUN_ID.
        out: Folder or URI of the features. A name that ends in .npz stands for that folder without the ending, and the file.
        format: npz writes OUT.npz as well, with the keys features and image_paths of the last layer.
        features: Which layer, and how it becomes one vector.
        micro_batch: Pictures that the ViT sees at once.
        workers: Ray actors, each with a GPU where there are GPUs; 1 computes in this process.
    """

    model: str
    out: str
    format: Literal["parquet", "npz"] = "parquet"
    features: FeatureSettings = field(default_factory=FeatureSettings)
    micro_batch: int = 32
    workers: int = 1


def main(options: ExtractFeatures) -> Outcome:
    from raymed.registry.address import open_tower
    from raymed.retrieval.extract import Work, extract
    from raymed.retrieval.features import Features, write_npz

    tower = open_tower(options.model, options.tracking)
    opened = options.open(tower.size)
    log.info("找到 %d 张图像 (pictures), %d parts", opened.pictures, len(opened.parts))
    work = Work(tower.resized(opened.image.size), options.features, opened.image)
    out, npz = options.out.removesuffix(".npz"), options.format == "npz" or options.out.endswith(".npz")
    if npz and not Folder.at(out).is_local:
        raise UserError(f"an npz is written to a local disk: give a local --out, or {out} without it")
    layers = options.features.layers(tower.layers)
    if options.dry_run:
        return Outcome(
            f"would compute layers {list(layers)} of {opened.pictures} pictures into {out}", {"pictures": opened.pictures}
        )
    log.info("提取特征: layers %s", ", ".join(map(str, layers)))
    manifest, kept = extract(work, opened.parts, opened.data, out, options.workers, options.micro_batch, opened.refused)
    lines = [f"处理 {each['where']} 时出错: {each['reason']}" for each in manifest.refused]
    found = sum(manifest.shards.values())
    lines += [
        f"特征形状: ({found}, {manifest.width}) of layers {manifest.layers}; {kept} of {len(opened.parts)} parts were there"
    ]
    where = Folder.at(out).uri
    if npz:
        file = Path(out + ".npz").expanduser().resolve()
        write_npz(Features.open(out), file, opened.data["root"])
        lines += [f"特征已保存到 {file}"]
    lines += [f"features: {where}"]
    known = {
        "out": where,
        "pictures": found,
        "layers": manifest.layers,
        "width": manifest.width,
        "refused": manifest.refused,
    }
    return Outcome("\n".join(lines), known | {"kept_parts": kept})


if __name__ == "__main__":
    run(ExtractFeatures, main, aliases=GUIDE)
