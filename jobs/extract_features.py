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

from raymed.data.image import ImageSettings
from raymed.data.prepared import MANIFEST, Prepared
from raymed.data.sources import Refusal, SourceSettings
from raymed.errors import UserError
from raymed.job import Alias, JobOptions, Outcome, run
from raymed.models.features import FeatureSettings
from raymed.models.vision_tower import VisionTower
from raymed.registry import open_tower
from raymed.retrieval.extract import Work, extract
from raymed.retrieval.features import Features, write_npz
from raymed.retrieval.parts import Part, prepared_parts, source_listing, source_parts
from raymed.storage import Folder

log = logging.getLogger("raymed")

GUIDE = {
    "image-dir": Alias("input"),
    "output": Alias("out"),
    "vit-checkpoint": Alias("model"),
    "batch-size": Alias("micro_batch"),
    "select-layer": Alias("features.layer"),
}


@dataclass(frozen=True, kw_only=True)
class ExtractFeatures(JobOptions):
    """Options of computing features.

    Attributes:
        model: A ViT (jobs/extract_vit.py), or any model that has one: a folder, a file, models:/NAME@ALIAS, runs:/RUN_ID.
        input: Prepared data, or pictures: a folder, a CSV, DICOM or NIfTI.
        out: Folder or URI of the features. A name that ends in .npz stands for that folder without the ending, and the file.
        format: npz writes OUT.npz as well, with the keys features and image_paths of the last layer.
        features: Which layer, and how it becomes one vector.
        split: Of prepared data: train, val, test or all.
        source: How pictures are read.
        labels: Label table of pictures that are not prepared: a YAML file, a name, or source, which takes them as written.
        size: Side of the pictures that the ViT sees; its positions are resampled (default: as it was made).
        resize: squash stretches pictures to the square; pad keeps their shape and adds black borders.
        window: For slices in Hounsfield units, as in jobs/prepare_lung.py.
        sixteen_bit: How 16-bit pictures become 8 bit, as in jobs/prepare_lung.py.
        micro_batch: Pictures that the ViT sees at once.
        workers: Ray actors, each with a GPU where there are GPUs; 1 computes in this process.
    """

    model: str
    input: str
    out: str
    format: Literal["parquet", "npz"] = "parquet"
    features: FeatureSettings = field(default_factory=FeatureSettings)
    split: Literal["train", "val", "test", "all"] = "all"
    source: SourceSettings = field(default_factory=SourceSettings)
    labels: str = "source"
    size: int | None = None
    resize: Literal["squash", "pad"] = "squash"
    window: str = "lung"
    sixteen_bit: Literal["full", "stretch"] = "full"
    micro_batch: int = 32
    workers: int = 1

    def pictures(self, tower: VisionTower) -> tuple[list[Part], ImageSettings, dict[str, str], list[Refusal]]:
        """The pictures in parts, how they are treated, where they come from, and those that are refused already.

        Raises:
            UserError: an option does not apply to them, or they cannot be read.
        """
        is_prepared = Folder.at(self.input).exists(MANIFEST)
        usual = ExtractFeatures(model=self.model, input=self.input, out=self.out)
        others = ("size", "resize", "window", "sixteen_bit", "labels", "source") if is_prepared else ("split",)
        if idle := [f"--{name.replace('_', '-')}" for name in others if getattr(self, name) != getattr(usual, name)]:
            known = "prepared data, whose pictures are as they were prepared" if is_prepared else "pictures without splits"
            raise UserError(f"{', '.join(idle)} cannot be followed: {self.input} holds {known}")
        if is_prepared:
            prepared = Prepared.open(self.input)
            if "datasets" in prepared.manifest.settings:
                raise UserError(
                    f"{self.input} holds conversations, prepared for pretraining: give the folder of their pictures"
                )
            data = {"kind": "prepared", "root": prepared.folder.uri, "split": self.split}
            return prepared_parts(prepared, self.split), prepared.image, data, []
        image = ImageSettings(self.size or tower.size, self.resize, self.window, self.sixteen_bit)
        listing = source_listing(Path(self.input).expanduser().absolute(), self.source)
        parts, ignored = source_parts(listing, self.labels, image)
        for line in (*listing.notes, *(f"left out: {count} pictures labelled {name}" for name, count in ignored.items())):
            log.info("%s", line)
        return parts, image, {"kind": listing.format, "root": str(listing.root)}, list(listing.refusals)


def main(options: ExtractFeatures) -> Outcome:
    tower = open_tower(options.model, options.tracking)
    parts, image, data, refused = options.pictures(tower)
    count = sum(len(part.rows) for part in parts)
    log.info("找到 %d 张图像 (pictures), %d parts", count, len(parts))
    if not count:
        raise UserError(f"there is no picture in {options.input} (--split {options.split}) to compute features of")
    work = Work(tower.resized(image.size), options.features, image)
    out, npz = options.out.removesuffix(".npz"), options.format == "npz" or options.out.endswith(".npz")
    if npz and not Folder.at(out).is_local:
        raise UserError(f"an npz is written to a local disk: give a local --out, or {out} without it")
    layers = options.features.layers(tower.layers)
    if options.dry_run:
        return Outcome(f"would compute layers {list(layers)} of {count} pictures into {out}", {"pictures": count})
    manifest, kept = extract(work, parts, data, out, options.workers, options.micro_batch, refused)
    lines = [f"处理 {each['where']} 时出错: {each['reason']}" for each in manifest.refused]
    found = sum(manifest.shards.values())
    lines += [f"特征形状: ({found}, {manifest.width}) of layers {manifest.layers}; {kept} of {len(parts)} parts were there"]
    where = Folder.at(out).uri
    if npz:
        file = Path(out + ".npz").expanduser().resolve()
        write_npz(Features.open(out), file, data["root"])
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
