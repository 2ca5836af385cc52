"""How long reading will take is estimated by reading some of it."""

import time
from pathlib import Path

import numpy as np
from volume_files import CHEST, write_nifti

from raymed.data.image import ImageSettings
from raymed.data.reading import seconds_per_slice
from raymed.data.sources import SourceSettings, load_study
from raymed.data.survey import survey


def test_a_volume_is_estimated_as_the_whole_that_is_read(tmp_path: Path) -> None:
    write_nifti(tmp_path / "P1.nii", hu=np.repeat(CHEST, 60, axis=0))
    found = survey(tmp_path, SourceSettings(labelled=False), "lung")
    estimate = seconds_per_slice(found, ImageSettings(size=16)) * found.slices
    start = time.perf_counter()
    load_study(found.listing.root, found.studies[0], ImageSettings(size=16))
    assert estimate < 10 * (time.perf_counter() - start), "a few slices of a volume cost as much as all of it"
