"""Masks keep their ids and their palette."""

import numpy as np
import pytest
from PIL import Image

from ribseg.data.io.masks import mask_ids, mask_size, read_mask, voc_palette, write_mask
from ribseg.errors import DataError, RibsegError


@pytest.fixture
def mask():
    return np.array([[0, 1, 20], [255, 254, 7]], dtype=np.uint8)


def test_palette_is_vocs():
    palette = voc_palette()
    assert palette[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert palette[20].tolist() == [0, 64, 128]
    assert palette[255].tolist() == [224, 224, 192]


def test_round_trip_keeps_ids_and_palette(tmp_path, mask):
    write_mask(tmp_path / "new" / "a.png", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "new" / "a.png"), mask)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.mode == "P"
        assert image.getpalette() == voc_palette().ravel().tolist()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_same_mask_same_bytes(tmp_path, mask):
    write_mask(tmp_path / "a.png", mask)
    write_mask(tmp_path / "b.png", mask.astype(np.int64))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, 2, 3), np.uint8),
        np.full((2, 2), -1),
        np.full((2, 2), 256),
        np.zeros((2, 2)),
        np.zeros((0, 2), int),
    ],
)
def test_bad_masks_are_not_written(tmp_path, bad):
    with pytest.raises(DataError, match="expected a mask"):
        write_mask(tmp_path / "a.png", bad)
    assert not list(tmp_path.iterdir())


def test_bad_palette(tmp_path, mask):
    with pytest.raises(DataError, match=r"expected a palette \(256, 3\)"):
        write_mask(tmp_path / "a.png", mask, np.zeros((21, 3), np.uint8))


def test_unwritable_folder(tmp_path, mask):
    (tmp_path / "file").write_text("")
    with pytest.raises(RibsegError, match="cannot write"):
        write_mask(tmp_path / "file" / "a.png", mask)


def test_gray_is_read(tmp_path, mask):
    Image.fromarray(mask).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "gray.png"), mask)
    assert mask_size(tmp_path / "gray.png") == (2, 3)


def test_low_bit_palettes_keep_their_ids(tmp_path):
    small = np.array([[0, 1, 2, 3]], dtype=np.uint8)
    image = Image.fromarray(small)
    image.putpalette(voc_palette()[:4].tobytes())
    image.save(tmp_path / "two_bit.png")  # Pillow packs four colours into two bits
    np.testing.assert_array_equal(read_mask(tmp_path / "two_bit.png"), small)


def test_gray_of_4_bit_is_refused(tmp_path):
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)  # 2 x 1 pixels, 4 bit, gray
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0\x12")), chunk(b"IEND", b"")]
    (tmp_path / "four.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.raises(DataError, match="L;4"):
        read_mask(tmp_path / "four.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16"])
def test_other_modes_say_convert(tmp_path, mode):
    Image.new(mode, (3, 2)).save(tmp_path / "bad.png")
    with Image.open(tmp_path / "bad.png") as image:
        mode = image.mode  # pillow's name for 16 bit has changed
    for read in (read_mask, mask_size):
        with pytest.raises(DataError, match=rf"bad\.png is a PNG of mode {mode};.*Convert it"):
            read(tmp_path / "bad.png")


def test_jpeg_masks_are_refused(tmp_path, mask):
    Image.fromarray(mask).save(tmp_path / "lossy.png", format="JPEG")
    with pytest.raises(DataError, match="JPEG"):
        read_mask(tmp_path / "lossy.png")


def test_ids_beyond_the_classes_are_listed(tmp_path, mask):
    write_mask(tmp_path / "a.png", mask)
    with pytest.raises(DataError, match=r"class ids \[20, 254\]; expected 0\.\.7"):
        read_mask(tmp_path / "a.png", num_classes=7)
    with pytest.raises(DataError, match=r"class ids \[20, 254\]; expected 0\.\.19"):
        read_mask(tmp_path / "a.png", num_classes=19)


def test_mask_ids(mask):
    assert mask_ids(mask).tolist() == [0, 1, 7, 20, 254, 255]


def test_truncated_mask(tmp_path):
    path = tmp_path / "a.png"
    write_mask(path, np.random.default_rng(0).integers(0, 20, (50, 50)))
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(DataError, match=r"a\.png cannot be read"):
        read_mask(path)
