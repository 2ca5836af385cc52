import io
import os
from pathlib import Path

import numpy as np
import pytest
from calls import calls_of
from PIL import Image
from scipy.ndimage import gaussian_filter

from raymed.data.duplicates import near_duplicates, perceptual_hash, thumbnail

REAL = os.environ.get("RAYMED_REAL_DATA")


def pictures(count: int, size: int = 224, seed: int = 0) -> list[np.ndarray]:
    """Pictures of one scene, as chest films are: the same coarse shape, patients' own detail on top."""
    draw = np.random.default_rng(seed)
    scene = 90 * gaussian_filter(draw.normal(size=(size, size)), size / 8) * size / 8 + 120
    made = []
    for _ in range(count):
        detail = 12 * gaussian_filter(draw.normal(size=(size, size)), 3) * 6 + draw.normal(scale=3, size=(size, size))
        made.append(np.clip(scene + detail, 0, 255).astype(np.uint8)[..., None])
    return made


def encoded(pixels: np.ndarray, quality: int, scale: float = 1.0) -> np.ndarray:
    """A JPEG copy, perhaps of another size, brought back to the size of the original as prepare does."""
    picture = Image.fromarray(pixels[..., 0])
    size = picture.size
    small = picture.resize((int(size[0] * scale), int(size[1] * scale)), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).resize(size, Image.Resampling.BICUBIC))[..., None]


def search(made: list[np.ndarray], patients: list[str]) -> list[tuple[int, int]]:
    small = np.stack([thumbnail(pixels) for pixels in made])
    return near_duplicates([perceptual_hash(pixels) for pixels in made], patients, lambda rows: small[rows])


@pytest.mark.parametrize(("quality", "scale"), [(50, 1.0), (75, 1.0), (90, 0.5), (90, 1.7)])
def test_reencoded_and_resized_copies_of_other_patients_are_found_and_nothing_else(quality: int, scale: float):
    made = pictures(40)
    copies = [encoded(pixels, quality, scale) for pixels in made[:12]]
    patients = [f"p{number}" for number in range(52)]
    assert search(made + copies, patients) == [(number, 40 + number) for number in range(12)]


def test_copies_within_a_patient_are_not_reported():
    made = pictures(4)
    assert search([*made, encoded(made[0], 80)], ["a", "b", "c", "d", "a"]) == []


def test_a_flat_picture_has_no_hash_and_matches_nothing():
    black = np.zeros((64, 64, 1), np.uint8)
    assert perceptual_hash(black) is None
    assert search([black, black.copy()], ["a", "b"]) == []


def test_colour_and_grey_copies_of_a_picture_are_alike():
    (grey,) = pictures(1)
    assert perceptual_hash(np.repeat(grey, 3, axis=2)) == perceptual_hash(grey)


def test_hashes_that_agree_by_chance_are_turned_down_by_the_pixels():
    made = pictures(2)
    same = perceptual_hash(made[0])
    small = np.stack([thumbnail(pixels) for pixels in made])
    assert near_duplicates([same, same], ["a", "b"], lambda rows: small[rows]) == []


def test_the_work_grows_with_the_rows_and_not_with_their_pairs():
    def work(count):
        draw, seen = np.random.default_rng(0), list[int]()
        hashes = [value.tobytes() for value in draw.integers(0, 256, (count, 32), dtype=np.uint8)]
        copies = [bytes([value[0] ^ 0b101, *value[1:20], value[20] ^ 0b1, *value[21:]]) for value in hashes[:10]]
        small = draw.integers(0, 256, (count, 64, 64), dtype=np.uint8)
        small = np.concatenate([small, small[:10]])

        def thumbnails(rows):
            seen.extend(rows)
            return small[rows]

        def look():
            assert near_duplicates(hashes + copies, [str(row) for row in range(count + 10)], thumbnails) == [
                (row, count + row) for row in range(10)
            ]

        return calls_of(look), len(seen)

    (few, looked_at), (many, also) = work(1_000), work(4_000)
    assert many < 4.5 * few
    assert looked_at == also == 20, "only those that may be alike are looked at"


@pytest.mark.real
@pytest.mark.skipif(not REAL, reason="RAYMED_REAL_DATA is not set")
def test_real_chest_films_that_look_alike_are_not_taken_for_copies():
    folder = Path(REAL or "") / "lung_xray" / "images" / "kermany"
    made = []
    for path in sorted(folder.iterdir())[:300]:
        made.append(np.asarray(Image.open(path).convert("L").resize((224, 224)))[..., None])
    copies = [encoded(pixels, 60) for pixels in made[:20]]
    found = search(made + copies, [f"p{number}" for number in range(320)])
    assert {(number, 300 + number) for number in range(20)} == set(found)
