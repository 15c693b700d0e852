"""Damaged files: a named error that says which file, or a result as promised; nothing else, and in time.

Random damage first (with a time limit for each case), then damage that a format invites.
"""

import copy
import io
import json
import random
import shutil
import signal
import struct
import zipfile
import zlib
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save as safetensors_bytes

from ribseg.data.coco import instances as coco_instances
from ribseg.data.coco.instances import read_instances
from ribseg.data.coco.prepare import prepare_coco
from ribseg.data.io import maps
from ribseg.data.io.images import read_header, read_image
from ribseg.data.io.labels import labels_from_csv, labels_from_xml
from ribseg.data.io.maps import LocalizationMaps, load_maps, save_maps
from ribseg.data.io.masks import mask_ids, read_mask
from ribseg.data.voc import VOCFolder
from ribseg.errors import DataError, RibsegError
from ribseg.files import read_lines
from ribseg.models import read_state_dict

CASES = 400  # of random damage for each reader
SECONDS = 5  # a case takes milliseconds; this is a hang
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@contextmanager
def in_time():
    """Ends a case that hangs, where the system has alarms."""

    def ring(*_):
        pytest.fail(f"not done after {SECONDS} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damaged(data, draw):
    """One to four times: cut, flipped, overwritten, inserted, left out, zeroed, or copied bytes."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        if not data:
            break
        # Headers decide most; so half of the damage is near the beginning.
        place = draw.randrange(min(len(data), draw.choice((16, 64, 700, len(data), len(data), len(data)))))
        length = draw.randrange(1, 40)
        match draw.randrange(8):
            case 0:
                del data[draw.randrange(len(data)) :]
            case 1:
                data[place] ^= 1 << draw.randrange(8)
            case 2:
                data[place] = draw.randrange(256)
            case 3:
                data[place:place] = draw.randbytes(length)
            case 4:
                del data[place : place + length]
            case 5:
                data[place:] = bytes(len(data) - place)
            case 6:
                data[place:place] = data[:length]
            case _:
                data[place : place + 4] = struct.pack(draw.choice("<>") + "I", draw.choice(NUMBERS))
    return bytes(data)


def refusal(read, *arguments):
    """What a named error says; None if there was none. Any other exception, and a hang, fails the test."""
    try:
        with in_time():
            read(*arguments)
    except RibsegError as error:
        return str(error)
    return None


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture():
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((40, 30), Image.Resampling.BICUBIC)


def tags():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a name", 72.0
    return exif


def jpegs():
    return [
        encoded(picture(), "JPEG", exif=tags()),
        encoded(picture(), "JPEG", progressive=True),
        encoded(picture().convert("CMYK"), "JPEG"),
        encoded(picture().convert("L"), "JPEG", restart_marker_rows=1, exif=tags()),
    ]


def pngs():
    modes = [encoded(picture().convert(mode), "PNG") for mode in ("RGB", "LA", "P", "1")]
    return [*modes, encoded(picture(), "PNG", exif=tags())]


def label_pngs():
    labels = Image.fromarray(np.random.default_rng(0).integers(0, 21, (20, 30), dtype=np.uint8))
    palette = labels.copy()
    palette.putpalette(bytes(range(256)) * 3)
    return [encoded(labels, "PNG"), encoded(palette, "PNG"), encoded(labels.convert("1"), "PNG")]


def map_files(folder):
    save_maps(folder / "a.npz", good_maps())
    save_maps(folder / "b.npz", LocalizationMaps(torch.zeros(0).long(), torch.zeros(0, 3, 4), None))
    plain = io.BytesIO()
    np.savez(plain, classes=np.array([2]), strided=np.ones((1, 3, 4), np.float16))
    return [(folder / "a.npz").read_bytes(), (folder / "b.npz").read_bytes(), plain.getvalue()]


def good_maps():
    torch.manual_seed(0)
    return LocalizationMaps(torch.tensor([2, 5]), torch.rand(2, 3, 4), torch.rand(2, 10, 13), (10, 13))


def weight_files():
    state = {"a.weight": torch.rand(3, 4), "b": torch.rand(2).half(), "c": torch.tensor(3)}
    files = []
    for content in (state, {"state_dict": state, "epoch": 3}):
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
            files.append(buffer.getvalue())
    return files


XML = (
    b'<?xml version="1.0" encoding="utf-8"?>\n<annotation><filename>a.jpg</filename><object><name>cat</name>'
    b"<part><name>head</name></part></object><object><name>dog</name></object></annotation>"
)
CSV = b'image,classes\nim0,cat\nim1,cat dog\nim2,\nim3,"dog"\n'
LIST = "\n".join(f"2007_{number:06d}" for number in range(8))
TEXTS = [LIST.encode(), *(LIST.encode(code) for code in ("utf-8-sig", "utf-16", "utf-16-le"))]


def check_image(path):
    image = read_image(path)
    assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3)
    assert read_header(path).size == image.shape[:2]


def check_mask(path):
    mask = read_mask(path, 20)
    assert (mask.dtype, mask.ndim) == (np.uint8, 2)
    assert all(label <= 20 or label == 255 for label in mask_ids(mask))


def check_xml(path):
    labels = labels_from_xml(path.parent, [path.stem], ["cat", "dog", "cow"])
    assert (labels.dtype, labels.shape) == (bool, (1, 3))


def check_csv(path):
    labels = labels_from_csv(path, ["im0", "im1", "im2", "im3"], ["cat", "dog", "cow"])
    assert (labels.dtype, labels.shape) == (bool, (4, 3))


def check_maps(path):
    read = load_maps(path)
    assert (read.classes.diff() > 0).all()
    for values in (read.strided, read.full):
        assert values is None or (values.dtype, len(values)) == (torch.float32, len(read.classes))
        assert values is None or values.isfinite().all()
    assert read.size in (None, (10, 13))


def check_text(path):
    assert not any("\0" in line for line in read_lines(path))


def check_weights(path):
    state = read_state_dict(path)
    assert state
    assert all(isinstance(value, torch.Tensor) for value in state.values())


READERS = {
    "a.jpg": (lambda _: jpegs(), check_image),
    "b.png": (lambda _: pngs(), check_image),
    "c.png": (lambda _: label_pngs(), check_mask),
    "d.xml": (lambda _: [XML], check_xml),
    "e.csv": (lambda _: [CSV, CSV.decode().encode("utf-16")], check_csv),
    "f.npz": (map_files, check_maps),
    "g.txt": (lambda _: TEXTS, check_text),
    "h.pth": (lambda _: weight_files(), check_weights),
    "i.safetensors": (lambda _: [safetensors_bytes({"a": torch.rand(3, 4)})], check_weights),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of decoders, about what they mend
@pytest.mark.parametrize("name", READERS)
def test_random_damage(tmp_path, name):
    make, check = READERS[name]
    files, draw, refused = make(tmp_path), random.Random(name), 0
    path = tmp_path / name
    for _ in range(CASES):
        path.write_bytes(damaged(draw.choice(files), draw))
        message = refusal(check, path)
        refused += message is not None
        assert message is None or (path.stem in message and len(message) < 3000)
    assert refused > CASES // 4
    path.write_bytes(files[0])
    check(path)


needs_pycocotools = pytest.mark.skipif(find_spec("pycocotools") is None, reason="pip install ribseg[coco]")
# What JSON can hold where something else is expected.
ODD = (
    None, True, -1, 2**63, 10**400, 1.5, 48.0, float("nan"), float("inf"), "", "\0", "\ud800", "a/b", "..",
    "two words.jpg", "x" * 3000, [], {}, [[]], [None], [[0] * 6], {"size": [40, 48]},
    {"size": [40.0, 48], "counts": [1920]}, {"size": [40, 48], "counts": [1920.0]},
    {"size": [40, 48], "counts": "PPPP"}, {"size": [40, 48], "counts": [True] * 3}, 65_500,
)  # fmt: skip


def instances():
    triangle = [4, 4, 28, 4, 28, 28]
    return {
        "images": [{"id": 100, "file_name": "a.jpg", "height": 40, "width": 48}],
        "annotations": [
            {"id": 1, "image_id": 100, "category_id": 13, "segmentation": [triangle], "iscrowd": 0},
            {
                "id": 2, "image_id": 100, "category_id": 1, "iscrowd": 1,
                "segmentation": {"size": [40, 48], "counts": [1900, 20]},
            },
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 13, "name": "bus"}],
    }  # fmt: skip


def places(node, path=()):
    """The paths to everything in a tree of dictionaries and lists."""
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield (*path, key)
        yield from places(node[key], (*path, key))


def replaced(content, path, value):
    changed = copy.deepcopy(content)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


def make_coco(root, content):
    """Makes masks of a file of instances, and opens what was made."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "s").mkdir(exist_ok=True)
    (root / "annotations/instances_s.json").write_bytes(content)
    target = root / "target"
    shutil.rmtree(target, ignore_errors=True)
    arguments = prepare_coco(root, target, ["s"], progress=False, workers=1)
    (root / "s/a.jpg").write_bytes(b"")  # files are looked for, not opened
    data = VOCFolder(**arguments, split="s")
    assert all(data.mask(image_id).ndim == 2 for image_id in data.ids)


@needs_pycocotools
def test_wrong_types_at_every_place_of_coco(tmp_path):
    cases = [(path, value) for path in places(instances()) for value in ODD]
    assert len(cases) > 800
    refused = 0
    for path, value in random.Random(0).sample(cases, 600):
        content = json.dumps(replaced(instances(), path, value)).encode()
        message = refusal(make_coco, tmp_path, content)
        refused += message is not None
        assert message is None or ("instances_s" in message and len(message) < 3000)
    assert 300 < refused < 600


@needs_pycocotools
@pytest.mark.parametrize("value", ["100", '"a.jpg"', '"bus"', "13", "4", "40"])
def test_nesting_just_below_and_above_the_limit(tmp_path, value):
    text = json.dumps(instances())
    for depth in (300, 900, *range(930, 1000, 5), 50_000):
        deep = text.replace(value, "[" * depth + "]" * depth, 1)
        assert "instances_s.json" in refusal(make_coco, tmp_path, deep.encode())


def test_declared_sizes_of_coco_are_not_allocated(tmp_path, monkeypatch):
    content = replaced(instances(), ("images", 0, "height"), 65_000)
    content["images"][0]["width"], content["annotations"] = 65_000, []
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="images without id, file_name and size"):
        read_instances(tmp_path / "a.json")
    monkeypatch.setattr(coco_instances.Image, "MAX_IMAGE_PIXELS", None)
    assert read_instances(tmp_path / "a.json").images[0].height == 65_000


@needs_pycocotools
def test_a_broken_manifest_of_coco_is_named(tmp_path):
    make_coco(tmp_path, json.dumps(instances()).encode())
    (tmp_path / "target/coco.json").write_text("[" * 100_000)
    with pytest.raises(RibsegError, match=r"coco\.json cannot be read"):
        prepare_coco(tmp_path, tmp_path / "target", ["s"], progress=False)


def png(header, raw, *more):
    """A PNG with right checksums: header is width, height, depth, colour type, interlace."""
    width, height, depth, colour, interlace = header
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)),
        *more,
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ]
    packed = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


# Header, bytes of all rows: gray, RGB, gray and alpha of 16 bit, 1 bit, palette of 2 bit.
LAYOUTS = [
    ((7, 5, 8, 0, 0), 5 * 8), ((7, 5, 8, 2, 0), 5 * 22), ((7, 5, 16, 4, 0), 5 * 29), ((9, 5, 1, 0, 0), 5 * 3),
    ((9, 5, 2, 3, 0), 5 * 4),
]  # fmt: skip


@pytest.mark.parametrize(("header", "size"), LAYOUTS)
def test_a_png_whose_rows_end_early_is_truncated(tmp_path, header, size):
    more = [(b"PLTE", bytes(12))] if header[3] == 3 else []
    path = tmp_path / "a.png"
    for missing in (0, 1, size // 2):
        path.write_bytes(png(header, bytes(size - missing), *more))
        for read in (read_image, read_mask) if header[2:4] in ((8, 0), (1, 0), (2, 3)) else (read_image,):
            if missing:
                with pytest.raises(DataError, match=r"a\.png (is truncated|cannot be read)"):
                    read(path)
            else:
                assert not read(path).any()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ((60_000, 60_000, 8, 0, 0), "too large to be decoded safely"),
        ((9_000, 9_000, 8, 0, 0), "truncated"),
        ((7, 0, 8, 0, 0), "cannot be read"),
        ((7, 5, 3, 0, 0), "cannot be read"),
        ((7, 5, 8, 9, 0), "cannot be read"),
    ],
)
def test_impossible_headers_of_pngs(tmp_path, header, message):
    (tmp_path / "a.png").write_bytes(png(header, bytes(40)))
    for read in (read_image, read_mask):
        with in_time(), pytest.raises(DataError, match=rf"a\.png .*{message}"):
            read(tmp_path / "a.png")


def test_a_jpeg_of_another_declared_size_has_that_size_or_is_refused(tmp_path):
    data, path = bytearray(jpegs()[2]), tmp_path / "a.jpg"
    place = data.index(b"\xff\xc0") + 5
    for height, width in ((1, 1), (29, 41), (31, 40), (200, 40), (65_535, 65_535), (0, 40)):
        data[place : place + 4] = struct.pack(">HH", height, width)
        path.write_bytes(data)
        message = refusal(read_image, path)
        if message is None:
            assert read_image(path).shape == (height, width, 3)
        else:
            assert "a.jpg" in message


def test_postscript_is_not_run(tmp_path):
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(out) (w) file\n%%EOF\n"
    (tmp_path / "a.jpg").write_bytes(text)
    for read in (read_header, read_image):
        with pytest.raises(DataError, match=r"a\.jpg.*EPS"):
            read(tmp_path / "a.jpg")


@pytest.mark.parametrize("kind", ["GIF", "PPM", "BMP", "TIFF"])
def test_masks_are_pngs(tmp_path, kind):
    Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5)).save(tmp_path / "a.png", format=kind)
    with pytest.raises(DataError, match=rf"a\.png is a {kind}"):
        read_mask(tmp_path / "a.png")


@pytest.mark.parametrize("code", ["utf-16", "utf-16-le", "utf-32", "cp037"])
def test_lists_and_names_in_other_encodings(voc_tree, code):
    for name in ("classes.txt", "ImageSets/Segmentation/train.txt"):
        path = voc_tree / name
        text = path.read_text()
        path.write_bytes(text.encode(code))
        with pytest.raises(DataError, match="UTF-8"):
            VOCFolder(voc_tree, "train")
        path.write_text(text)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (b"<html><body>404</body></html>", "expected <annotation> around everything, found <html>"),
        (XML.replace(b"utf-8", b"rot13"), "malformed XML files: 1"),
        (XML.replace(b"utf-8", b"no-such-code"), "malformed XML files: 1"),
        (XML.replace(b"cat", b"&nobody;"), "malformed XML files: 1"),
        (XML.replace(b"cat", b"c" * 10**6), "unknown class names: 1"),
        (XML.replace(b"<name>cat</name>", b""), "unknown class names: 1"),
        (b"<annotation>" + b"<o>" * 10**5 + b"</o>" * 10**5, "malformed XML files: 1"),
    ],
)
def test_odd_xml(tmp_path, xml, message):
    (tmp_path / "a.xml").write_bytes(xml)
    with in_time(), pytest.raises(DataError, match=message) as caught:
        check_xml(tmp_path / "a.xml")
    assert len(str(caught.value)) < 1000


def npz(path, kind=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, value in members.items():
            if isinstance(value, np.ndarray):
                buffer = io.BytesIO()
                np.save(buffer, value)
                value = buffer.getvalue()
            archive.writestr(f"{name}.npy", value)


def npy(shape, descr="'<f2'"):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(48)


CLASSES, STRIDED = np.array([2, 5]), np.zeros((2, 3, 4), np.float16)
SIZE = np.array([10, 13])
WRONG_MAPS = [
    {"strided": np.array([{}], dtype=object)},
    {"strided": np.zeros((2, 3, 4), "c8")},
    {"strided": np.zeros((2, 3, 4), [("a", "<f2")])},
    {"strided": np.full((2, 3, 4), 1e300)},
    {"strided": np.full((2, 3, 4), np.nan)},
    {"classes": np.array([5, 2])},
    {"classes": np.array([2, 2])},
    {"classes": np.array([-1, 2])},
    {"classes": np.array(["a", "b"])},
    {"size": np.array([2**40, 13])},
    {"size": np.array([-10, 13])},
    {"size": np.array([0, 0])},
    {"full": np.zeros((2, 10, 12), np.float16), "size": SIZE},
    *(
        {"strided": npy(shape, descr)}
        for shape, descr in (
            ("(99999999999, 3, 4)", "'<f2'"), ("(4294967296, 4294967296, 1)", "'<f2'"), ("(2, 3, 4", "'<f2'"),
            ("(" * 3000 + "2", "'<f2'"), ("-" * 9000 + "1", "'<f2'"), ("(2, 3, -4)", "'<f2'"),
            ("2**99999999", "'<f2'"), ("(2, 3, 4)", "'|O'"), ("(2, 3, 4)", "'<f9'"), ("(2, 3, 5)", "'<f2'"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_MAPS)
def test_wrong_maps(tmp_path, wrong):
    npz(tmp_path / "a.npz", **({"classes": CLASSES, "strided": STRIDED} | wrong))
    with in_time(), pytest.raises(DataError, match=r"a\.npz (cannot be read|holds no localization maps)"):
        load_maps(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", ["<f4", ">f2", ">f4", "<f8", "<f2"])
def test_maps_of_other_precisions_and_byte_orders_are_read(tmp_path, kind):
    strided = np.arange(24).reshape(2, 3, 4) / 32
    for order in "CF":
        npz(tmp_path / "a.npz", classes=CLASSES.astype(">i4"), strided=strided.astype(kind, order=order))
        read = load_maps(tmp_path / "a.npz")
        assert read.classes.tolist() == [2, 5]
        assert np.array_equal(read.strided.numpy(), strided)


def test_maps_that_unpack_to_too_much_are_not_unpacked(tmp_path, monkeypatch):
    save_maps(tmp_path / "a.npz", good_maps())
    monkeypatch.setattr(maps, "LARGEST", 500)
    with pytest.raises(DataError, match=r"a\.npz cannot be read: it unpacks to more than"):
        load_maps(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"need more than .*maps\.full=false"):
        save_maps(tmp_path / "a.npz", good_maps())


def test_other_members_of_a_file_of_maps_are_left_packed(tmp_path, monkeypatch):
    npz(tmp_path / "a.npz", classes=CLASSES, strided=STRIDED, more=bytes(10_000))
    monkeypatch.setattr(maps, "LARGEST", 1_000)
    assert load_maps(tmp_path / "a.npz").classes.tolist() == [2, 5]


def test_a_flipped_bit_anywhere_in_the_pixels_of_a_png_is_found(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 3, (30, 40), dtype=np.uint8)).save(path)
    good = path.read_bytes()
    first, last = good.index(b"IDAT") + 4, good.rindex(b"IEND") - 8
    for place in range(first, last):
        path.write_bytes(good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :])
        with pytest.raises(DataError):
            read_mask(path)
