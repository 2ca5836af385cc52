"""Edit a picture with UniMedVL, or show it in another stain or window: PNG, and a sheet with the input beside it.

    python jobs/edit_image.py --model models:/raymed-unimedvl@champion --image chest.png --instruction "Remove what is ..."
    python jobs/edit_image.py --model UniMedVL --image he.png --instruction "Show it in HER2 IHC, 2+." --out ihc.png
    python jobs/edit_image.py --model UniMedVL --image he.png --instruction "..." --mode thinking --cfg-img-scale 1.5

What is drawn is synthetic: it shows no patient, is marked as such, and its settings are in the file. If it is blurred, try
--drawing.cfg_renorm_type global, or a lower --drawing.cfg_img_scale.
"""

from __future__ import annotations

from raymed.job.job import Outcome, run
from raymed.systems.unimedvl.editing import GUIDE, EditImage


def main(options: EditImage) -> Outcome:
    from raymed.systems.unimedvl.editing import edit
    from raymed.systems.unimedvl.pipeline import Pipeline

    return edit(Pipeline.open(options.model, options.tracking, options.weights, options.reading), options)


if __name__ == "__main__":
    run(EditImage, main, aliases=GUIDE)
