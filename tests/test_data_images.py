"""Reading of photographs: every mode, every damage."""

import contextlib
import os

import numpy as np
import pytest
from PIL import Image

from ribseg.data.io.images import read_header, read_image, rescale
from ribseg.errors import DataError, RibsegError


@pytest.fixture
def colours():
    return np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8)


def save(tmp_path, image, name="x.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_rgb_png_is_read_unchanged(tmp_path, colours):
    read = read_image(save(tmp_path, Image.fromarray(colours)))
    np.testing.assert_array_equal(read, colours)
    assert read.dtype == np.uint8
    assert read.flags.writeable


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_every_mode_gives_rgb(tmp_path, colours, mode):
    image = Image.fromarray(colours).convert(mode)
    np.testing.assert_array_equal(read_image(save(tmp_path, image)), np.array(image.convert("RGB")))


def test_alpha_is_dropped_not_blended(tmp_path, colours):
    rgba = np.dstack([colours, np.zeros((5, 8), np.uint8)])
    np.testing.assert_array_equal(read_image(save(tmp_path, Image.fromarray(rgba))), colours)


def test_cmyk_jpeg(tmp_path):
    path = save(tmp_path, Image.new("RGB", (9, 7), (200, 30, 30)).convert("CMYK"), "x.jpg")
    assert read_image(path).shape == (7, 9, 3)
    assert np.abs(read_image(path).astype(int) - (200, 30, 30)).max() < 12


def test_16_bit_gray_is_scaled_to_8_bit(tmp_path):
    values = np.array([[0, 257, 65535], [128 * 257, 1000, 65534]], dtype=np.uint16)
    read = read_image(save(tmp_path, Image.fromarray(values)))
    np.testing.assert_array_equal(read[..., 0], [[0, 1, 255], [128, 4, 255]])
    assert (read == read[..., :1]).all()


def test_float_pixels_are_refused(tmp_path):
    path = save(tmp_path, Image.fromarray(np.ones((2, 2), np.float32)), "x.tif")
    with pytest.raises(DataError, match=r"x\.tif holds floating-point"):
        read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, colours, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, Image.fromarray(colours), exif=exif)
    shape = (8, 5) if orientation >= 5 else (5, 8)
    assert read_image(path).shape == (*shape, 3)
    assert read_header(path) == (shape, (5, 8))
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    np.testing.assert_array_equal(read_image(path)[corner[orientation]], colours[0, 0])


def test_nonsense_orientation_is_none(tmp_path, colours):
    exif = Image.Exif()
    exif[0x0112] = 77
    assert read_image(save(tmp_path, Image.fromarray(colours), exif=exif)).shape == (5, 8, 3)


def test_one_pixel_high(tmp_path):
    assert read_image(save(tmp_path, Image.new("RGB", (300, 1)), "x.jpg")).shape == (1, 300, 3)


@pytest.mark.parametrize("keep", [0, 1, 30, 300, 0.5, 0.95])
def test_truncated_file_is_named(tmp_path, keep):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("cut.jpg", "cut.png"):
        path = save(tmp_path, Image.fromarray(noise), name)
        data = path.read_bytes()
        path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
        with pytest.raises(DataError, match=rf"{name} cannot be read as an image"):
            read_image(path)


def test_flipped_bytes_never_escape(tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    rng = np.random.default_rng(2)
    for name in ("bad.jpg", "bad.png"):
        path = save(tmp_path, Image.fromarray(noise), name)
        data = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(150):
            broken = data.copy()
            broken[rng.integers(0, min(len(data), 700), 4)] = rng.integers(0, 256, 4)
            path.write_bytes(broken.tobytes())
            with contextlib.suppress(RibsegError):  # anything else fails the test
                assert read_image(path).dtype == np.uint8


def test_other_files_are_named(tmp_path):
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    with pytest.raises(DataError, match=r"text\.jpg cannot be read"):
        read_image(tmp_path / "text.jpg")
    with pytest.raises(DataError, match="absent"):
        read_image(tmp_path / "nothing.jpg")
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_forbidden_file_is_named(tmp_path, colours):
    path = save(tmp_path, Image.fromarray(colours))
    path.chmod(0)
    with pytest.raises(DataError, match="Permission"):
        read_image(path)


@pytest.mark.parametrize("limit", [30, 15])
def test_decompression_bomb_is_an_error(tmp_path, colours, monkeypatch, limit):
    path = save(tmp_path, Image.fromarray(colours))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=r"too large to be decoded safely.*MAX_IMAGE_PIXELS"):
        read_header(path)


def test_rescale_rounds_like_numpy_and_keeps_a_pixel(colours):
    assert rescale(colours, 0.5).shape == (2, 4, 3)  # np.round(2.5) is 2
    assert rescale(colours[:1], 0.1).shape == (1, 1, 3)
    assert rescale(colours, 1.0) is colours
