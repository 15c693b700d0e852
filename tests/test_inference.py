"""From images to masks: scales, mirror image, tiles, CRF, and `ribseg.predict` as function and command."""

import importlib
import inspect
import re
import runpy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import ribseg
from ribseg.cli import main
from ribseg.data.io.masks import voc_palette, write_mask
from ribseg.errors import ConfigError, DataError
from ribseg.models import DeepLabV2, Segmenter
from ribseg.models.inference import PUBLISHED_CRF, class_probabilities, normalized, predict_labels, tiles


class Colours(nn.Module):
    """Labels by colour; the receptive field is 3 pixels, the stride 1."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images):
        return self.norm(self.layer(images))


def photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_probabilities_are_the_mean_over_scales_and_mirror_image():
    model = Colours().eval()
    image = torch.randn(3, 10, 13)
    views = []
    for size in ((5, 6), (10, 13)):
        small = F.interpolate(image[None], size, mode="bilinear", align_corners=False)
        for mirror in (lambda x: x, lambda x: x.flip(-1)):
            logits = F.interpolate(
                mirror(model(mirror(small))), (10, 13), mode="bilinear", align_corners=False
            )
            views.append(logits[0].softmax(0))
    result = class_probabilities(model, image, (0.5, 1.0))
    torch.testing.assert_close(result, torch.stack(views).mean(0))
    torch.testing.assert_close(result.sum(0), torch.ones(10, 13))
    plain = class_probabilities(model, image, flip=False)
    torch.testing.assert_close(plain, model(image[None])[0].softmax(0))


def test_a_mirrored_image_has_mirrored_labels():
    image = photo(12, 17)
    labels = predict_labels(Colours(), image, scales=(0.5, 1.0), flip=True)
    mirrored = predict_labels(Colours(), image[:, ::-1].copy(), scales=(0.5, 1.0), flip=True)
    assert (labels == mirrored[:, ::-1]).mean() > 0.99  # ties are broken by rounding


def test_the_model_is_left_as_it_was():
    model = Colours().train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predict_labels(model, photo(9, 9))
    assert model.training
    assert not model.norm.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.layer.weight.grad is None


@pytest.mark.parametrize("size", [(1, 1), (7, 30), (29, 31), (64, 5), (8, 8)])
@pytest.mark.parametrize("tile", [8, 13])
def test_tiles_give_what_the_whole_gives(size, tile):
    image = photo(*size)
    whole = predict_labels(Colours(), image, flip=True)
    assert (predict_labels(Colours(), image, flip=True, tile=tile, margin=2) == whole).all()


@pytest.mark.parametrize(("length", "tile", "margin"), [(100, 20, 4), (21, 20, 9), (5, 20, 0), (41, 20, 0)])
def test_tiles_cover_an_image_once(length, tile, margin):
    covered = np.zeros((length, 3), int)
    for part in tiles((length, 3), tile, margin):
        covered[part.kept] += 1
        seen, kept = part.seen[0], part.kept[0]
        assert seen.stop - seen.start == min(tile, length)
        for inner, outer, end in ((kept.start, seen.start, 0), (seen.stop, kept.stop, length)):
            assert inner - outer >= margin or outer == end or inner == end
    assert (covered == 1).all()


@pytest.mark.parametrize(
    "settings", [{"tile": 4, "margin": 2}, {"tile": 0}, {"scales": ()}, {"scales": (0,)}]
)
def test_settings_that_cannot_work(settings):
    with pytest.raises(ConfigError, match="expected"):
        predict_labels(Colours(), photo(9, 9), **settings)


def test_the_crf_takes_single_pixels_away():
    image = np.full((20, 20, 3), 100, np.uint8)
    image[:, 10:] = 200
    noisy = image.copy()
    noisy[5, 5] = 200
    probabilities = np.where((noisy[..., 0] == 200)[None], [[[0.4]], [[0.6]]], [[[0.8]], [[0.2]]])
    from ribseg.models.inference import most_probable

    labels = most_probable(image, probabilities, PUBLISHED_CRF | {"backend": "torch"})
    assert labels.dtype == np.uint8
    assert labels[5, 5] == 0
    assert (labels[:, 11:] == 1).all()


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_other_arrays_are_refused(image):
    with pytest.raises(DataError, match="expected an image"):
        predict_labels(Colours(), image)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    model = DeepLabV2(3, "resnet10t", dilations=(1, 2), backbone_kwargs={"channels": [8, 8, 12, 16]})
    palette = voc_palette()[::-1].copy()
    segmenter = Segmenter(model, ("a", "b"), palette=palette, inference={"scales": [0.5, 1.0], "flip": False})
    segmenter.save(tmp_path / "segmenter.safetensors")
    return tmp_path / "segmenter.safetensors"


def test_predict_takes_paths_and_arrays(tmp_path, checkpoint):
    images = [photo(30, 41), photo(1, 7)]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    from_arrays = ribseg.predict(images, checkpoint)
    from_paths = ribseg.predict([tmp_path / "0.png", str(tmp_path / "1.png")], checkpoint)
    single = ribseg.predict(tmp_path / "0.png", ribseg.load_segmenter(checkpoint))
    assert all((a == b).all() for a, b in zip(from_arrays, from_paths, strict=True))
    assert (single == from_arrays[0]).all()
    assert [mask.shape for mask in from_arrays] == [(30, 41), (1, 7)]
    assert single.dtype == np.uint8
    assert single.max() < 3
    # The checkpoint's settings are used, and can be replaced.
    segmenter = ribseg.load_segmenter(checkpoint)
    by_hand = class_probabilities(
        segmenter.model,
        normalized(segmenter.model, images[0], segmenter.mean, segmenter.std),
        (0.5, 1),
        False,
    )
    assert (single == by_hand.argmax(0).numpy()).all()
    assert (ribseg.predict(images[0], checkpoint, scales=[1.0], flip=True) != single).any()


def test_labels_leave_out_other_classes(tmp_path, checkpoint):
    segmenter = ribseg.load(checkpoint)
    image = photo(40, 50)
    first, second = segmenter.classes[:2]
    assert set(np.unique(ribseg.predict(image, checkpoint, labels=[second]))) <= {0, 2}
    for crf in (None, PUBLISHED_CRF):
        both = ribseg.predict([image, image], checkpoint, labels=[[], [first, second]], crf=crf)
        assert not both[0].any()
        assert set(np.unique(both[1])) <= {0, 1, 2}
    everything = ribseg.predict(image, checkpoint, labels=segmenter.classes)
    assert np.array_equal(everything, ribseg.predict(image, checkpoint))
    assert np.array_equal(
        ribseg.predict(image, checkpoint, labels=[1]),
        ribseg.predict(image, checkpoint, labels=[second.upper()]),
    )
    for labels, message in (
        (first, "expected a list"),
        ([[first]], "labels"),
        (["nothing"], "is not a class"),
    ):
        with pytest.raises(ConfigError, match=message):
            ribseg.predict(image, checkpoint, labels=labels)
    with pytest.raises(ConfigError, match="for each of 2 images"):
        ribseg.predict([image, image], checkpoint, labels=[[first]])
    with pytest.raises(ConfigError, match="classes"):
        predict_labels(segmenter.model, image, classes=[-1])


def test_the_command_takes_labels(tmp_path, checkpoint, capsys):
    for name in ("a", "b"):
        Image.fromarray(photo(40, 50)).save(tmp_path / f"{name}.png")
    second = ribseg.load(checkpoint).classes[1]
    (tmp_path / "labels.csv").write_text(f"image,classes\na,{second}\nb,\n")
    words = ["predict", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--checkpoint", str(checkpoint)]
    main([*words, "--out", str(tmp_path / "out"), "--labels", str(tmp_path / "labels.csv"), "--no-crf"])
    assert "labels: labels.csv" in capsys.readouterr().out
    found = {name: np.array(Image.open(tmp_path / "out" / f"{name}.png")) for name in ("a", "b")}
    assert set(np.unique(found["a"])) <= {0, 2}
    assert not found["b"].any()
    (tmp_path / "labels.csv").write_text(f"image,classes\na,{second}\n")
    with pytest.raises(SystemExit, match="b"):
        main([*words, "--out", str(tmp_path / "new"), "--labels", str(tmp_path / "labels.csv")])
    assert not (tmp_path / "new").exists()


def test_a_mask_takes_part_with_its_weight(checkpoint):
    segmenter = ribseg.load(checkpoint)
    image = photo(40, 50)
    tensor = normalized(segmenter.model, image, segmenter.mean, segmenter.std)
    mask = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], np.uint8), (40, 50))
    mean = class_probabilities(segmenter.model, tensor, (0.5, 1.0), flip=False).numpy()
    for label in range(3):
        mean[:, mask == label] *= 0.7
        mean[label, mask == label] += 0.3
    labels = ribseg.predict(image, checkpoint, masks=mask, trust=0.3)
    assert (labels == mean.argmax(0)).mean() > 0.999
    kept = ribseg.predict(image, checkpoint, masks=mask, trust=0.5, tile=32)
    assert np.array_equal(kept[mask < 255], mask[mask < 255])
    assert np.array_equal(
        ribseg.predict([image], checkpoint, masks=[mask], trust=0)[0], ribseg.predict(image, checkpoint)
    )
    with pytest.raises(DataError, match=r"labels \[0, 1\] and 255, got \[2\]"):
        ribseg.predict(image, checkpoint, labels=["a"], masks=mask)
    with pytest.raises(DataError, match=r"expected a mask of uint8 \(40, 50\)"):
        ribseg.predict(image, checkpoint, masks=mask[1:])
    with pytest.raises(ConfigError, match="one for each of 1 images, got 2"):
        ribseg.predict([image], checkpoint, masks=[mask, mask])
    with pytest.raises(ConfigError, match="trust"):
        ribseg.predict(image, checkpoint, masks=mask, trust=1.5)
    with pytest.raises(DataError, match="EXIF rotation"):
        ribseg.predict(image, checkpoint, masks=mask.T.copy())
    with pytest.raises(DataError, match="got list"):
        ribseg.predict([image], checkpoint, masks=[[mask]])


def test_masks_and_labels_of_some_images(tmp_path, checkpoint):
    image, first = photo(40, 50), ribseg.load(checkpoint).classes[0]
    mask = np.ones((40, 50), np.uint8)
    write_mask(tmp_path / "a.png", mask)
    kept = {"masks": [None, mask], "trust": 0.6}
    with pytest.raises(ConfigError, match="there is none"):
        ribseg.predict([image, image], checkpoint, **kept)
    images = (each for each in (image, image))
    labels, masks = [None, [first] * 7], [None, tmp_path / "a.png"]
    plain, known = ribseg.predict(images, checkpoint, labels=labels, masks=masks)
    assert np.array_equal(plain, ribseg.predict(image, checkpoint))
    assert np.array_equal(known, ribseg.predict(image, checkpoint, labels=[first], masks=mask))
    for labels in (0, {"a": [first]}, np.array(1)):
        with pytest.raises(ConfigError, match="labels: expected one for each of 2 images"):
            ribseg.predict([image, image], checkpoint, labels=labels)
    with pytest.raises(ConfigError, match="vector of zeros and ones"):
        ribseg.predict(image, checkpoint, labels=[0, 0, 1])
    with pytest.raises(ConfigError, match="tile"):
        ribseg.predict(image, checkpoint, tile=5)


def test_the_command_takes_masks(tmp_path, checkpoint):
    Image.fromarray(photo(40, 50)).save(tmp_path / "a.png")
    given = np.full((40, 50), 2, np.uint8)
    write_mask(tmp_path / "given" / "a.png", given)
    words = [
        "predict",
        str(tmp_path / "a.png"),
        "--checkpoint",
        str(checkpoint),
        "--out",
        str(tmp_path / "out"),
    ]
    main([*words, "--masks", str(tmp_path / "given"), "--trust", "0.5"])
    assert np.array_equal(np.array(Image.open(tmp_path / "out" / "a.png")), given)
    with pytest.raises(SystemExit, match="weight of a mask, and there is none"):
        main([*words, "--trust", "0.5"])
    with pytest.raises(SystemExit, match="folder of the given masks"):
        main([*words, "--masks", str(tmp_path / "out")])
    (tmp_path / "given" / "classes.txt").write_text("b\na")
    with pytest.raises(SystemExit, match=r"have the classes \['b', 'a'\]"):
        main([*words, "--masks", str(tmp_path / "given")])
    (tmp_path / "given" / "scenes").mkdir()
    (tmp_path / "given" / "a.png").unlink()
    (tmp_path / "given" / "classes.txt").unlink()
    with pytest.raises(SystemExit, match=r"found folders: \['scenes'\]"):
        main([*words, "--masks", str(tmp_path / "given")])
    write_mask(tmp_path / "given" / "b.png", given)
    with pytest.raises(SystemExit, match=r"a\.png"):
        main([*words, "--masks", str(tmp_path / "given")])


def test_predict_is_the_function():
    with pytest.raises(ImportError, match=r"python -m ribseg\.predict"):
        importlib.import_module("ribseg.predict")
    assert "checkpoint" in inspect.signature(ribseg.predict).parameters


def test_the_command_writes_palette_pngs(tmp_path, checkpoint, monkeypatch, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in (("a", (20, 33)), ("b", (17, 9))):
        Image.fromarray(photo(*size)).save(folder / f"{name}.png")
    out = tmp_path / "out"
    words = [folder, "--checkpoint", checkpoint, "--out", out, "--scales", 1, "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["predict", *map(str, words)])
    runpy.run_module("ribseg.predict", run_name="__main__")  # as python -m ribseg.predict
    assert "2 masks written" in capsys.readouterr().out
    for name in "ab":
        mask = Image.open(out / f"{name}.png")
        expected = ribseg.predict(folder / f"{name}.png", checkpoint, scales=[1.0])
        assert mask.mode == "P"
        assert (np.array(mask) == expected).all()
        assert mask.getpalette()[:3] == [224, 224, 192]  # the checkpoint's own


def test_the_command_says_what_is_wrong(tmp_path, checkpoint):
    Image.fromarray(photo(5, 5)).save(tmp_path / "a.png")
    for arguments, message in (
        (
            [tmp_path / "a.png", "--checkpoint", tmp_path / "a.png", "--out", tmp_path / "o"],
            "expected a segmenter",
        ),
        ([tmp_path / "a.png", "--checkpoint", checkpoint, "--out", tmp_path], "replace the image itself"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["predict", *map(str, arguments)])
        assert message in stop.value.code  # a text: printed on standard error, exit status 1


@pytest.fixture
def mixed_folder(tmp_path):
    """Two whole images among four that are broken in different ways."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "z.png"):
        Image.fromarray(photo(9, 12)).save(folder / name)
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_text("<html>not found</html>")
    Image.fromarray(np.zeros((3, 3), np.float32)).save(folder / "float.png", "TIFF")
    return folder


def test_unreadable_images_do_not_stop_the_others(tmp_path, checkpoint, mixed_folder, capsys):
    out, absent = tmp_path / "out", tmp_path / "absent.png"
    arguments = [absent, mixed_folder, "--checkpoint", checkpoint, "--out", out, "--device", "cpu", "--quiet"]
    with pytest.raises(SystemExit) as stop:
        main(["predict", *map(str, arguments)])
    message = stop.value.code  # a text: printed on standard error, exit status 1
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "classes.txt", "z.png"]
    assert "2 masks written" in capsys.readouterr().out
    headline, *named = message.splitlines()
    assert headline == "ribseg: 5 of 7 images could not be segmented"
    reasons = {absent: "absent", **dict.fromkeys(mixed_folder.glob("[cep]*"), "cannot be read|truncated")}
    reasons[mixed_folder / "float.png"] = "floating-point"
    assert len(named) == len(reasons)
    for path, why in reasons.items():
        (line,) = (line for line in named if str(path) in line)
        assert re.search(why, line)


def test_an_output_that_cannot_be_written_stops_at_once(tmp_path, checkpoint, mixed_folder, monkeypatch):
    (tmp_path / "out").write_text("a file where the folder should be")
    seen = []
    monkeypatch.setattr(
        "ribseg.models.inference.predict",
        lambda image, *_, **__: seen.append(image) or np.zeros((2, 2), np.uint8),
    )
    with pytest.raises(SystemExit, match=r"cannot write .*out.*writable folder"):
        main(
            [
                "predict",
                str(mixed_folder),
                "--checkpoint",
                str(checkpoint),
                "--out",
                str(tmp_path / "out"),
                "--quiet",
            ]
        )
    assert seen == []


def test_an_image_beyond_the_memory_is_named_with_a_way_out(tmp_path, checkpoint, monkeypatch):
    class Full(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, images):
            raise torch.OutOfMemoryError("no memory")

    full = Segmenter(Full(), ("a",), inference={"flip": False})
    # Not by its path, whose `load` is the function.
    monkeypatch.setattr(importlib.import_module("ribseg.models.load"), "load_segmenter", lambda *_: full)
    Image.fromarray(photo(4, 5)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit, match=r"(?s)1 of 1 images.*a\.png: .*4 x 5 pixels.*--tile"):
        main(
            ["predict", str(tmp_path / "a.png"), "--checkpoint", "-", "--out", str(tmp_path / "o"), "--quiet"]
        )


def test_two_images_of_one_name_are_never_reduced_to_one(tmp_path, checkpoint):
    for name in ("a.png", "a.jpg"):
        Image.fromarray(photo(4, 5)).save(tmp_path / name)
    with pytest.raises(SystemExit, match=r"a\.jpg and .*a\.png would both become"):
        main(["predict", str(tmp_path), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "o")])
