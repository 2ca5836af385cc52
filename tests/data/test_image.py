"""Pictures of every kind come out as uint8 [size, size, 1 or 3]; what cannot be read says why."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from raymed.data.image import ImageError, ImageSettings, apply_window, fit, read_picture, recorded
from raymed.errors import UserError

REAL = Path(os.environ.get("RAYMED_REAL_DATA", "/nonexistent"))
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (40, 30), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (40, 30, 3), dtype=np.uint8)


def saved(tmp_path: Path, picture: Image.Image, name: str, **options: object) -> Path:
    path = tmp_path / name
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp"])
def test_lossless_files_come_out_as_stored(tmp_path: Path, name: str) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    path = saved(tmp_path, Image.fromarray(COLOUR), name, **options)
    assert np.array_equal(read_picture(path), COLOUR)


def test_grey_and_grey_stored_as_rgb_come_out_with_one_channel(tmp_path: Path) -> None:
    for picture in (Image.fromarray(GREY), Image.fromarray(np.stack([GREY] * 3, axis=2))):
        assert np.array_equal(read_picture(saved(tmp_path, picture, "a.png")), GREY[:, :, None])


def test_jpeg_grey_and_rgb(tmp_path: Path) -> None:
    smooth = Image.fromarray(GREY).resize((64, 64), Image.Resampling.BICUBIC)
    assert read_picture(saved(tmp_path, smooth, "a.jpg")).shape == (64, 64, 1)
    assert read_picture(saved(tmp_path, Image.fromarray(COLOUR), "b.jpeg")).shape == (40, 30, 3)


def test_palette_becomes_the_colours_it_stands_for(tmp_path: Path) -> None:
    palette = Image.fromarray(GREY % 4, "P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    expected = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)[GREY % 4]
    assert np.array_equal(read_picture(saved(tmp_path, palette, "a.png")), expected)


def test_transparent_parts_become_black(tmp_path: Path) -> None:
    alpha = np.where(GREY > 127, 255, 0).astype(np.uint8)
    la = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)])
    assert np.array_equal(read_picture(saved(tmp_path, la, "a.png"))[:, :, 0], np.where(alpha > 0, GREY, 0))
    rgba = Image.fromarray(np.dstack([COLOUR, alpha]))
    assert np.array_equal(read_picture(saved(tmp_path, rgba, "b.png")), np.where(alpha[:, :, None] > 0, COLOUR, 0))
    keyed = saved(tmp_path, Image.fromarray(GREY), "c.png", transparency=int(GREY[0, 0]))
    assert np.array_equal(read_picture(keyed)[:, :, 0], np.where(GREY[0, 0] == GREY, 0, GREY))


def test_cmyk_and_bilevel(tmp_path: Path) -> None:
    white = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    assert read_picture(saved(tmp_path, white, "a.jpg")).min() == 255
    bits = Image.fromarray(GREY).convert("1")
    assert set(np.unique(read_picture(saved(tmp_path, bits, "b.png")))) == {0, 255}


def test_sixteen_bit_grey_is_kept_and_scaled_as_asked(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    path = saved(tmp_path, Image.fromarray(deep), "a.png")
    picture = read_picture(path)
    assert picture.dtype == np.uint16 and np.array_equal(picture[:, :, 0], deep)
    for name in ("bits,16", "full"):  # as earlier models call it
        full = fit(picture, ImageSettings(size=64, sixteen_bit=name))
        assert full.dtype == np.uint8 and np.array_equal(full[:, :, 0], np.rint(deep / 257).astype(np.uint8))
    narrow = (1000 + deep // 100).astype(np.uint16)[:, :, None]
    stretched = fit(narrow, ImageSettings(size=64, sixteen_bit="stretch"))
    assert (stretched.min(), stretched.max()) == (0, 255)


def test_what_sixteen_bits_mean_is_said_for_all_pictures_and_never_guessed_from_one() -> None:
    twelve = RNG.integers(0, 4096, (64, 64, 1), dtype=np.uint16)
    with pytest.raises(
        ImageError, match=r"with --image\.sixteen_bit bits,N.*hu,OFFSET.*stretch, of the job that is the first"
    ):
        fit(twelve, ImageSettings(size=64))
    shown = fit(twelve, ImageSettings(size=64, sixteen_bit="bits,12"))
    assert np.array_equal(shown, np.rint(twelve * np.float32(255 / 4095)).astype(np.uint8))
    marked = twelve.copy()
    marked[0, 0] = 65535
    again = fit(marked, ImageSettings(size=64, sixteen_bit="bits,12"))
    assert again[0, 0] == 255 and np.array_equal(again[1:], shown[1:]), "one marker darkens the film"


def test_hounsfield_units_in_sixteen_bits_are_windowed() -> None:
    hu = RNG.integers(-1000, 1000, (64, 64, 1))
    stored = (hu + 32768).astype(np.uint16)
    shown = fit(stored, ImageSettings(size=64, sixteen_bit="hu,32768"))
    assert np.array_equal(shown, apply_window(hu, 1500, -600))
    for wrong in ("bits,16", "hu,1024"):
        with pytest.raises(ImageError, match="fewer than 32 grey levels"):
            fit(stored, ImageSettings(size=64, sixteen_bit=wrong))
    black = np.zeros((64, 64, 1), np.uint16)
    assert not fit(black, ImageSettings(size=64, sixteen_bit="bits,16")).any(), "an empty picture has few levels of its own"


@pytest.mark.parametrize("text", ["hu", "bits,8", "bits,17", "hu,x", "12", "hu,32768,1"])
def test_a_wrong_meaning_of_sixteen_bits_is_an_error_that_names_what_there_is(text: str) -> None:
    with pytest.raises(UserError, match=r"bits,N or hu,OFFSET, .*stretch"):
        ImageSettings(sixteen_bit=text)


def deep_png(kind: int, channels: int) -> bytes:
    """A PNG of 16 bits a channel; `kind` is its colour type: 2 RGB, 4 grey with alpha, 6 RGB with alpha."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + RNG.integers(0, 65535, (8, channels)).astype(">u2").tobytes() for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_in_colour_are_refused_not_cut(tmp_path: Path, kind: int, channels: int) -> None:
    (tmp_path / "a.png").write_bytes(deep_png(kind, channels))
    with pytest.raises(ImageError, match="16 bits in colour"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("compression", ["raw", "tiff_deflate"])
def test_a_deep_tiff_whose_smallest_value_is_white_is_refused_not_inverted(tmp_path: Path, compression: str) -> None:
    deep = Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8))
    deep.save(tmp_path / "a.tif", compression=compression)
    assert read_picture(tmp_path / "a.tif").dtype == np.uint16
    deep.save(tmp_path / "b.tif", compression=compression, tiffinfo={262: 0})
    with pytest.raises(ImageError, match="MinIsWhite"):
        read_picture(tmp_path / "b.tif")


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_exif_rotation_is_refused_not_applied_and_not_ignored(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(GREY), name, exif=exif)
    with pytest.raises(ImageError, match="EXIF"):
        read_picture(path)
    for upright in (0, 1):
        exif[0x0112] = upright
        assert read_picture(saved(tmp_path, Image.fromarray(GREY), f"{upright}_{name}", exif=exif)).shape == (40, 30, 1)


def test_a_word_for_exif_that_is_none_is_an_error_and_takes_no_picture_as_stored() -> None:
    with pytest.raises(UserError, match=r"image\.exif 'Apply': give refuse or apply"):
        ImageSettings.from_dict({"exif": "Apply"})


STORED = {  # how a picture lies in a file of each orientation, of the upright one (EXIF 2.32, 4.6.4)
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp", "deep.png", "deep.tif", "lzw.tif"])
def test_exif_is_applied_where_a_person_says_so(tmp_path: Path, name: str, orientation: int) -> None:
    smooth = np.linspace(0, 255, 64 * 48).reshape(64, 48)  # which JPEG keeps
    upright = (smooth * 200).astype(np.uint16) if name.startswith("deep") else smooth.astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"a.webp": {"lossless": True}, "lzw.tif": {"compression": "tiff_lzw"}}.get(name, {})
    stored = np.ascontiguousarray(STORED[orientation](upright))
    path = saved(tmp_path, Image.fromarray(stored), name, exif=exif, **options)
    shown = read_picture(path, exif="apply")
    assert shown.dtype == upright.dtype and shown.shape == (64, 48, 1)
    assert np.abs(shown[:, :, 0].astype(int) - upright).max() <= (6 if name.endswith("jpg") else 0)


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="RAYMED_REAL_DATA is not set")
@pytest.mark.parametrize("orientation", STORED)
def test_a_real_xray_is_upright_however_it_was_stored(tmp_path: Path, orientation: int) -> None:
    path = next(path for path in sorted(REAL.joinpath("lung_xray").rglob("*.jpg")) if path.stat().st_size < 2**18)
    upright = read_picture(path)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)).squeeze())
    assert np.array_equal(read_picture(saved(tmp_path, stored, "a.png", exif=exif), exif="apply"), upright)


def test_what_was_made_before_a_setting_came_keeps_its_digest_and_name() -> None:
    """They are digests of these."""
    before = {"size": 448, "resize": "squash", "window": "lung", "sixteen_bit": "refuse", "rule": 4}
    assert recorded(ImageSettings()) == before
    assert repr(ImageSettings()) == "ImageSettings(size=448, resize='squash', window='lung', sixteen_bit='refuse', rule=4)"
    assert ImageSettings.from_dict(before) == ImageSettings()
    turned = ImageSettings(exif="apply")
    assert recorded(turned) == before | {"exif": "apply"} and "exif='apply'" in repr(turned)
    assert ImageSettings.from_dict(recorded(turned)) == turned


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "does not exist"), (b"", "empty"), (b"hello, not a picture", "not a readable picture"), (b"GIF89a", "not a")],
)
def test_unreadable_files_say_why(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=reason):
        read_picture(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, kind: str, share: float) -> None:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, kind)
    path = tmp_path / "a.bin"
    path.write_bytes(buffer.getvalue()[: int(share * buffer.tell())])
    with pytest.raises(ImageError):
        read_picture(path)


def test_several_frames_and_float_pixels_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(GREY), Image.fromarray(GREY[::-1].copy())]
    with pytest.raises(ImageError, match="2 frames"):
        read_picture(saved(tmp_path, frames[0], "a.tif", save_all=True, append_images=frames[1:]))
    with pytest.raises(ImageError, match="floating"):
        read_picture(saved(tmp_path, Image.fromarray(GREY.astype(np.float32)), "b.tif"))


@pytest.mark.parametrize("side", [10_001, 60_000])
def test_huge_pictures_are_refused_from_their_header(tmp_path: Path, side: int) -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)))
    with pytest.raises(ImageError, match="100 megapixels"):
        read_picture(path)


@settings(deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "WEBP"]),
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_bytes_never_raise_anything_but_image_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, damage: list[tuple[int, int]]
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(GREY[:12, :12]).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for at, value in damage:
        content[at % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(content)
    try:
        picture = read_picture(path)
    except ImageError:
        return
    assert picture.ndim == 3 and picture.shape[2] in (1, 3) and picture.dtype in (np.uint8, np.uint16)


def test_fit_squashes_or_pads_and_leaves_the_right_size_alone() -> None:
    bright = np.full((20, 40, 3), 200, np.uint8)
    assert (fit(bright, ImageSettings(size=32)) == 200).all()
    padded = fit(bright, ImageSettings(size=32, resize="pad"))
    assert (padded[8:24] == 200).all() and (padded[:8] == 0).all() and (padded[24:] == 0).all()
    assert np.array_equal(fit(GREY[:30, :, None], ImageSettings(size=30)), GREY[:30, :, None])


def test_window_maps_its_ends_and_middle_by_the_formula() -> None:
    hu = np.array([-3000, -1350, -1349.9, -600, 149, 150, 3000], np.float32)
    assert apply_window(hu, 1500, -600).tolist() == [0, 0, 0, 127, 254, 255, 255]


def test_nan_pixels_are_refused() -> None:
    with pytest.raises(ImageError, match="NaN"):
        apply_window(np.array([[0.0, np.nan]]), 1500, -600)


@settings(deadline=None)
@given(st.floats(1, 5000), st.floats(-2000, 2000), st.integers(-4000, 4000))
def test_window_is_monotone(width: float, level: float, value: int) -> None:
    low, high = apply_window(np.array([value, value + 7]), width, level)
    assert low <= high


def test_window_by_name_or_numbers() -> None:
    assert ImageSettings().width_level == (1500, -600)
    assert ImageSettings(window="400, 40").width_level == ImageSettings(window="mediastinum").width_level


@pytest.mark.parametrize("window", ["liver", "0,40", "400", "400,40,1", "nan,0", "", "-5,0"])
def test_wrong_window_is_an_error_that_names_the_presets(window: str) -> None:
    with pytest.raises(UserError, match="mediastinum"):
        ImageSettings(window=window)


def test_a_size_that_no_memory_holds_is_refused_before_anything_is_read() -> None:
    with pytest.raises(UserError, match="at most 10000"):
        ImageSettings(size=1_000_000)


def test_wrong_size_is_an_error() -> None:
    with pytest.raises(UserError, match="size"):
        ImageSettings(size=0)


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="RAYMED_REAL_DATA is not set")
def test_real_dicom_slices_windowed_equal_the_real_pictures() -> None:
    files = sorted((REAL / "volumes" / "dicom_ctmd_P001").glob("*.dcm"))
    assert len(files) == 24
    for file in files:
        dataset = pydicom.dcmread(file)
        hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        picture = read_picture(REAL / "lung_ct" / "images" / f"P001_{file.stem}.png")[:, :, 0]
        assert np.abs(apply_window(hu, 1500, -600).astype(int) - picture).max() <= 1
