"""Odd images through the whole map path: views, CAM and RIB, merging, writing, reading."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import ribseg
from ribseg.data.io.maps import LocalizationMaps, load_maps, save_maps
from ribseg.methods.base import bind
from ribseg.modules import LocalizationModule
from ribseg.modules.data_module import WSSSDataModule

GRAY = np.random.default_rng(0).integers(0, 256, (6, 9), dtype=np.uint8).repeat(8, 0).repeat(7, 1)
COLOURS = np.stack([GRAY, GRAY[::-1], 255 - GRAY], axis=2)
# (height, width): smaller than the network's stride at scale 0.5, and very long.
SIZES = ((1, 1), (3, 200), (200, 3), (1, 700), (700, 2), (15, 16), (17, 31))
TURNED = 6  # EXIF orientation: stored after a quarter turn to the left


def exif():
    tags = Image.Exif()
    tags[0x0112] = TURNED
    return tags


def stored():
    """Name -> an image, how it is saved, and the name of the image that it is the same as."""
    gray, colours = Image.fromarray(GRAY), Image.fromarray(COLOURS)
    alpha = Image.fromarray(GRAY[:, ::-1].copy())
    palette = colours.convert("P", palette=Image.Palette.ADAPTIVE, colors=200)
    turned = {"exif": exif()}
    return {
        "gray_rgb.png": (gray.convert("RGB"), {}, None),
        "gray.png": (gray, {}, "gray_rgb"),
        "gray_alpha.png": (Image.merge("LA", (gray, alpha)), {}, "gray_rgb"),
        "sixteen.png": (Image.fromarray(GRAY.astype(np.uint16) * 257), {}, "gray_rgb"),
        "rgb.png": (colours, {}, None),
        "turned.png": (Image.fromarray(np.rot90(COLOURS).copy()), turned, "rgb"),
        "alpha.png": (Image.merge("RGBA", (*colours.split(), alpha)), {}, "rgb"),
        "palette_rgb.png": (palette.convert("RGB"), {}, None),
        "palette.png": (palette, {}, "palette_rgb"),
        "transparent.png": (palette, {"transparency": 3}, "palette_rgb"),
        "gray_jpeg.jpg": (gray, {}, None),
        "cmyk.jpg": (colours.convert("CMYK"), {}, None),
        "turned_cmyk.jpg": (Image.fromarray(np.rot90(COLOURS).copy()).convert("CMYK"), turned, None),
        "black_white.png": (gray.convert("1"), {}, None),
    }


SAME = {name.split(".")[0]: same for name, (_, _, same) in stored().items()}
EXPECTED = dict.fromkeys(SAME, GRAY.shape) | {f"size_{h}_{w}": (h, w) for h, w in SIZES}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """All odd images, each with one or two of three classes, and one image that shares none with them."""
    root = tmp_path_factory.mktemp("odd")
    for folder in ("JPEGImages", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    images = stored() | {
        f"size_{h}_{w}.png": (Image.fromarray(np.resize(COLOURS, (h, w, 3))), {}, None) for h, w in SIZES
    }
    images["other.png"] = (Image.fromarray(np.resize(COLOURS, (2, 90, 3))), {}, None)
    rows = ["image,classes"]
    for number, (name, (image, options, _)) in enumerate(images.items()):
        image.save(root / "JPEGImages" / name, **options)
        rows.append(f"{name.split('.')[0]},{'c' if name == 'other.png' else 'a b' if number % 2 else 'a'}")
    (root / "image_labels.csv").write_text("\n".join(rows))
    (root / "classes.txt").write_text("a\nb\nc")
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(row.split(",")[0] for row in rows[1:]))
    small = {"crop_size": 32, "resize_long": (16, 30), "num_workers": 0, "batch_size": 4}
    return WSSSDataModule(root, eval_splits=["train"], **small)


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    model = ribseg.Classifier("resnet10t", 3, backbone_kwargs={"channels": (8, 8, 12, 16)})
    model.head.weight.data.abs_()  # features are not negative, so no map is all zeros
    return model


def check(maps, size, classes, folder):
    """Shapes and values, then again from the file, which is compressed and of half precision."""
    height, width = size
    assert tuple(maps.full.shape) == (classes, height, width)
    assert tuple(maps.strided.shape) == (classes, -(-height // 4), -(-width // 4))
    for values in (maps.full, maps.strided):
        assert values.isfinite().all()
        assert values.min() >= 0
        assert 0.9 < values.max() <= 1
    save_maps(folder / "a.npz", maps)
    read = load_maps(folder / "a.npz")
    assert read.size == size
    # Half of the distance between neighbours just below 1.
    assert (read.full - maps.full).abs().max() <= 2**-12
    assert (read.strided - maps.strided).abs().max() <= 2**-12


def plain_cam(classifier):
    """The module that makes plain CAMs."""
    return LocalizationModule(classifier, bind(ribseg.cam, classifier))


@pytest.mark.parametrize("image_id", EXPECTED)
def test_cam_and_rib_of_odd_images(data, classifier, tmp_path, image_id):
    item = data.predict_dataset([image_id])[0]
    assert item.size == EXPECTED[image_id]
    classes = int(item.labels.sum())
    rib = ribseg.RIB(classifier, steps=2, margin=1e6, area_limit=None)
    modules = plain_cam(classifier), LocalizationModule(classifier, rib, data.references(2), "rib")
    for module in modules:
        prediction = module.predict_step(item, 0)
        check(prediction.maps, item.size, classes, tmp_path)
    assert prediction.record["steps"] == 2


@pytest.mark.parametrize("image_id", [name for name, same in SAME.items() if same])
def test_the_same_picture_in_another_mode_gives_the_same_views(data, image_id):
    odd, plain = data.predict_dataset([image_id, SAME[image_id]])
    assert odd.size == plain.size
    for view, expected in zip(odd.views, plain.views, strict=True):
        assert torch.equal(view, expected)


@pytest.mark.parametrize("image_id", ["size_1_700", "size_700_2"])
def test_a_cap_on_the_longer_side_leaves_the_size_of_the_maps(data, classifier, tmp_path, image_id):
    capped = data.predict_dataset([image_id])
    capped.max_side = 100
    item = capped[0]
    assert max(item.views[0].shape[2:]) == 100
    maps = plain_cam(classifier).predict_step(item, 0).maps
    check(maps, EXPECTED[image_id], len(maps.classes), tmp_path)


def test_odd_images_can_be_learned_from(data):
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train) // 4
    assert all(batch.image.isfinite().all() for batch in batches)


def test_files_of_maps_are_compressed_and_of_half_precision(tmp_path):
    maps = torch.linspace(0, 1, 3 * 40 * 60).reshape(3, 40, 60)
    path = tmp_path / "a.npz"
    save_maps(path, LocalizationMaps(torch.arange(3), maps[:, ::4, ::4], maps, (40, 60)))
    with zipfile.ZipFile(path) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_DEFLATED}
        unpacked = sum(entry.file_size for entry in archive.infolist())
    assert path.stat().st_size < unpacked
    with np.load(path, allow_pickle=False) as arrays:
        assert (arrays["full"].dtype, arrays["strided"].dtype) == (np.float16, np.float16)
    read = load_maps(path).full
    assert 0 < (read - maps).abs().max() <= 2**-12
    # What decides on a mask: the order of values, and on which side of a score of a sweep they are.
    assert (read.flatten().diff() >= 0).all()
    for score in torch.linspace(0, 1, 101):
        moved = (read > score) != (maps > score)
        assert (maps[moved] - score).abs().max() <= 2**-12 if moved.any() else True


def test_empty_maps_of_a_single_pixel_are_read_as_written(tmp_path):
    save_maps(
        tmp_path / "a.npz",
        LocalizationMaps(torch.zeros(0).long(), torch.zeros(0, 1, 1), torch.zeros(0, 1, 1), (1, 1)),
    )
    read = load_maps(tmp_path / "a.npz")
    assert (len(read.classes), read.size, tuple(read.full.shape)) == (0, (1, 1), (0, 1, 1))
