"""Values that are said to be Hounsfield units are believed where they hold air and tissue, whatever the file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from volume_files import CHEST, SIDE, shown

from raymed.data.hounsfield import require_hounsfield, without_padding
from raymed.data.image import ImageError, ImageSettings
from raymed.data.sources import Refusal, SourceSettings, list_source, load_study


def loaded(folder: Path, sixteen_bit: str, window: str = "lung") -> list[np.ndarray | str]:
    listing = list_source(folder, SourceSettings(labelled=False))
    settings = ImageSettings(size=SIDE, sixteen_bit=sixteen_bit, window=window)
    results = [result for _, result in load_study(listing.root, listing.studies[0], settings)]
    return [result.reason if isinstance(result, Refusal) else result[..., 0] for result in results]


def test_a_wrong_offset_of_pictures_is_refused_by_the_series(tmp_path: Path) -> None:
    chest = CHEST.copy()
    chest[2] = np.linspace(-150, 100, chest[2].size).reshape(chest[2].shape)  # a slice without air
    for at, plane in enumerate(chest):
        Image.fromarray((plane.astype(np.int32) + 1500).astype(np.uint16)).save(tmp_path / f"{at}.png")
    assert np.array_equal(np.stack(loaded(tmp_path, "hu,1500")), shown(chest))
    results = loaded(tmp_path, "hu,0", window="1500,1250")
    assert len(results) == len(chest) and all("where air would be" in str(result) for result in results)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.linspace(0, 4095, 1000), "where air would be"),
        (np.linspace(-1000, -300, 1000), "where tissue would be"),
        (np.linspace(-300, 9000, 1000), "which only metal has"),
        (np.append(np.linspace(-1000, 1000, 1000), 40000), "values up to 40000"),
        (np.where(np.arange(1000) < 500, -2000.0, 40.0), "where air would be"),
    ],
)
def test_values_of_another_scale_are_refused(values: np.ndarray, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        require_hounsfield([without_padding(values.astype(np.float32))[1]])


def test_a_chest_with_metal_and_padding_is_believed() -> None:
    chest = np.concatenate([np.linspace(-1000, 1000, 1000), [8000.0] * 20, [-3024.0] * 500]).astype(np.float32)
    hu, values = without_padding(chest)
    require_hounsfield([values])
    assert (hu[-500:] == -1000).all() and np.array_equal(hu[:-500], chest[:-500])
    with pytest.raises(ImageError, match="nothing but padding"):
        without_padding(np.full(5, -2000, np.float32))
