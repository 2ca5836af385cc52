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

from raymed.job.job import Outcome, run
from raymed.retrieval.options import GUIDE, ExtractFeatures

log = logging.getLogger("raymed")


def main(options: ExtractFeatures) -> Outcome:
    from raymed.registry.address import open_tower
    from raymed.retrieval.extract import Work, extract
    from raymed.retrieval.extraction import Destination, plan, summary

    tower = open_tower(options.model, options.tracking)
    opened = options.open(tower.size)
    work = Work(tower.resized(opened.image.size), options.features, opened.image)
    out, layers = Destination.of(options.out, options.format), options.features.layers(tower.layers)
    if options.dry_run:
        return plan(layers, opened, out)
    log.info("找到 %d 张图像 (pictures), %d parts; 提取特征: layers %s", opened.pictures, len(opened.parts), list(layers))
    manifest, kept = extract(
        work, opened.parts, opened.data, out.folder, options.workers, options.micro_batch, opened.refused
    )
    return summary(manifest, kept, opened, out)


if __name__ == "__main__":
    run(ExtractFeatures, main, aliases=GUIDE)
