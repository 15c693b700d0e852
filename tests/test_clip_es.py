"""CLIP-ES: equal to the released program on recorded weights and images, without a classifier."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from quick_run import folder_run

import ribseg
from ribseg.checks import SettingError
from ribseg.cli import main
from ribseg.data.feed.views import multi_scale_views
from ribseg.data.voc import VOC_CLASSES
from ribseg.errors import ConfigError, DataError
from ribseg.methods.cam import merge_maps
from ribseg.methods.clip_es import ClipES
from ribseg.models.clip import ClipTower
from ribseg.models.text import BACKGROUNDS, TextEmbeddings, embedded_names, read_text_embeddings

# Made by generate_cams_voc12.py of the authors' repository (commit 3893f81, MIT) on a CPU, in full precision
# where it rounds position embedding and results to half: their VisionTransformer with 4 blocks of
# width 16, random weights, and text embeddings near each other. Images (as PNGs): `image_a` of aeroplane and
# cat, `image_b` of person, `image_c` of bird, dog and sofa; `cam_*` and `refined_*` are its "highres" and
# "attn_highres", at the images' sizes.
RECORDED = Path(__file__).parent / "data" / "clip_es.npz"
IMAGES = ("a", "b", "c")
SMALL = {"embed_dim": 16, "depth": 4, "num_heads": 2, "img_size": 48, "num_classes": 12}
BLOCKS = 4


@pytest.fixture(scope="module")
def recorded():
    with np.load(RECORDED) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def weights(recorded, tmp_path_factory):
    """A file of the recorded weights, with open_clip's names."""
    path = tmp_path_factory.mktemp("weights") / "open_clip.pth"
    found = {name: values for name, values in recorded.items() if name.startswith("weight_")}
    torch.save(
        {
            f"visual.{n.removeprefix('weight_')}": torch.from_numpy(v.astype(np.float32))
            for n, v in found.items()
        },
        path,
    )
    return path


@pytest.fixture(scope="module")
def text(recorded):
    rows = (torch.from_numpy(recorded[name].astype(np.float32)) for name in ("classes", "background"))
    return TextEmbeddings(VOC_CLASSES, next(rows), BACKGROUNDS, next(rows))


@pytest.fixture
def method(text, weights):
    return ClipES(text=text, weights=weights, tower_kwargs=SMALL, blocks=BLOCKS)


def given(recorded, name):
    """Views and labels of a recorded image."""
    labels = torch.zeros(20)
    labels[recorded[f"classes_{name}"]] = 1
    return {"views": multi_scale_views(recorded[f"image_{name}"], (1.0, 0.5)), "labels": labels}


def large(maps, image):
    return F.interpolate(maps[None], image.shape[:2], mode="bilinear", align_corners=False)[0].numpy()


@pytest.mark.parametrize("name", IMAGES)
def test_maps_are_those_of_the_released_program(name, method, recorded):
    found = method(**given(recorded, name))
    assert found.classes.tolist() == recorded[f"classes_{name}"].tolist()
    image, expected = recorded[f"image_{name}"], recorded[f"refined_{name}"]
    np.testing.assert_allclose(large(found.maps[0], image), expected, atol=1e-3)
    maps, attention = method._grad_cam(method.prepared(given(recorded, name)["views"][0][:1]), found.classes)
    np.testing.assert_allclose(large(maps, image), recorded[f"cam_{name}"], atol=2e-3)
    assert attention.shape == (maps[0].numel(), maps[0].numel())
    # Maps of pixels are of the image, not of what a stride of 16 would add to it.
    full = merge_maps(found.maps, image.shape[:2]).full.numpy()
    peak = expected.astype(np.float32).max((1, 2), keepdims=True)
    np.testing.assert_allclose(full, expected / (peak + 1e-5), atol=2e-3)


def test_what_the_released_boxes_lose(recorded, text, weights):
    """A region in the last column alone has a box without locations; ours has one."""
    whole = ClipES(text=text, weights=weights, tower_kwargs=SMALL, blocks=BLOCKS, short_boxes=False)
    sofa = 2
    assert recorded["cam_c"][sofa].max() > 0.9
    assert recorded["refined_c"][sofa].max() == 0
    assert whole(**given(recorded, "c")).maps[0][sofa].max() > 0.9


def test_the_same_for_any_normalization_of_the_views(recorded, text, weights, method):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    other = ClipES(text=text, weights=weights, tower_kwargs=SMALL, blocks=BLOCKS, mean=mean, std=std)
    labels = given(recorded, "a")["labels"]
    views = multi_scale_views(recorded["image_a"], (1.0,), mean, std)
    expected = method(**given(recorded, "a")).maps[0]
    assert torch.equal(other(views=views, labels=labels).maps[0], expected)


def test_under_no_grad_and_autocast_and_without_classes(recorded, method):
    expected = method(**given(recorded, "b")).maps[0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method(**given(recorded, "b")).maps[0], expected)
    nothing = method(views=given(recorded, "b")["views"], labels=torch.zeros(20))
    assert [tuple(maps.shape) for maps in nothing.maps] == [(0, 1, 1)] * 2
    with pytest.raises(ValueError, match=r"labels of shape \(20,\)"):
        method(views=given(recorded, "b")["views"], labels=torch.ones(3))


def test_classes_are_found_by_name_in_the_order_of_the_data(recorded, text, weights, method):
    names = ("sofa", "bird", "dog")
    other = ClipES(text=text, classes=names, weights=weights, tower_kwargs=SMALL, blocks=BLOCKS)
    found = other(views=given(recorded, "c")["views"], labels=torch.ones(3)).maps[0]
    torch.testing.assert_close(found, method(**given(recorded, "c")).maps[0][[2, 0, 1]])
    with pytest.raises(ConfigError, match=r"lack 1 of 2 classes: zebra; they have aeroplane"):
        ClipES(text=text, classes=("dog", "zebra"), weights=weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": None}, r"text=FILE.*ribseg text"),
        ({"text": "nowhere.npz"}, r"no file of text embeddings at nowhere\.npz"),
        ({"pretrained": False, "weights": None}, r"pretrained=true or weights=FILE"),
        ({"tower_kwargs": SMALL | {"num_classes": 8}}, r"tower: .*does not fit: expected '.*proj|head"),
        ({"tower": "vit_tiny_patch16_224", "tower_kwargs": {"depth": 1}}, r"tower: expected a ViT of CLIP"),
        ({"tower": "resnet10t", "tower_kwargs": None}, r"tower: expected a ViT of CLIP"),
        ({"tower": "vit_nix"}, r"tower: timm knows no model 'vit_nix'"),
        ({"blocks": 5}, r"blocks <= 4"),
    ],
)
def test_what_cannot_work_is_refused(settings, message, text, weights):
    usual = {"text": text, "weights": weights, "tower_kwargs": SMALL, "blocks": BLOCKS}
    with pytest.raises(ConfigError, match=message):
        ClipES(**(usual | settings))


def test_texts_of_another_clip_are_refused(text, weights):
    other = TextEmbeddings(text.names, text.classes[:, :7], text.background_names, text.background[:, :7])
    with pytest.raises(ConfigError, match=r"embeddings of 12 values, .* got 7"):
        ClipES(text=other, weights=weights, tower_kwargs=SMALL, blocks=BLOCKS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_scale", 0),
        ("blocks", 0),
        ("rounds", 0),
        ("power", 0),
        ("box_threshold", -1),
        ("short_boxes", 1),
    ],
)
def test_settings_out_of_range_are_refused(name, value, text, weights):
    with pytest.raises(SettingError, match=name):
        ClipES(text=text, weights=weights, **{name: value})


@torch.no_grad()
def test_the_tower_is_timms_with_another_way_to_resize_positions(weights):
    tower = ClipTower(weights=weights, kwargs=SMALL)
    images = torch.randn(2, 3, 48, 48)
    patches = tower.network.forward_features(images)[:, 1:]
    expected = tower.network.head(patches.mean(1))
    torch.testing.assert_close(tower.embed(tower.tokens(images)), expected)
    assert tower.tokens(torch.randn(1, 3, 32, 80)).shape == (1, 11, 16)
    assert not any(weight.requires_grad for weight in tower.parameters())


def test_a_file_of_text_embeddings_and_back(tmp_path, text):
    text.save(tmp_path / "text.npz")
    found = read_text_embeddings(tmp_path / "text.npz")
    assert (found.names, found.background_names) == (text.names, text.background_names)
    assert torch.equal(found.classes, text.classes)
    assert torch.equal(found.background, text.background)
    alone = TextEmbeddings(text.names, text.classes, (), text.background[:0])
    alone.save(tmp_path / "alone.npz")
    assert read_text_embeddings(tmp_path / "alone.npz").background.shape == (0, 12)


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        (("a",), torch.ones(2, 3), r"\(C, E\) and \(B, E\) for 1 classes"),
        (("a", "a"), torch.ones(2, 3), "one twice"),
        (("a", "b"), torch.tensor([[1.0, 0, 0], [0, 0, 0]]), "none of them zero"),
        (("a",), torch.tensor([[float("nan"), 0, 0]]), "finite"),
        ((), torch.ones(0, 3), "for 0 classes"),
    ],
)
def test_embeddings_that_cannot_be_are_refused(names, classes, message):
    with pytest.raises(DataError, match=message):
        TextEmbeddings(names, classes, ("sky",), torch.ones(1, 3))


def test_files_that_are_no_text_embeddings_are_refused(tmp_path):
    (tmp_path / "junk.npz").write_bytes(b"junk")
    np.savez(tmp_path / "other.npz", names=np.array(["a"]))
    rows = {"classes": np.ones((1, 3)), "background": np.ones((1, 3))}
    pickled = {"names": np.array(["a"], object), "background_names": np.array(["b"], object)}
    np.savez(tmp_path / "pickled.npz", **rows, **pickled)
    texts = {"names": np.array(["a"]), "background_names": np.array(["b"])}
    np.savez(tmp_path / "whole.npz", **texts, classes=np.ones((1, 3), int), background=np.ones((1, 3), int))
    np.savez(tmp_path / "shape.npz", **texts, classes=np.ones((2, 3)), background=np.ones((1, 3)))
    messages = {
        "junk": "no file of text embeddings", "other": "with the arrays names", "pickled": "allow_pickle",
        "whole": "embeddings of floats", "shape": r"for 1 classes",
    }  # fmt: skip
    for name, message in messages.items():
        with pytest.raises(ConfigError, match=message):
            read_text_embeddings(tmp_path / f"{name}.npz")


RUN = "run=[classifier,methods,evaluate,report]"


@pytest.fixture
def settings(tmp_path, text, weights):
    """Of a quick run over the classes a and b."""
    named = TextEmbeddings(("b", "a", "z"), text.classes[:3], text.background_names, text.background)
    named.save(tmp_path / "text.npz")
    kwargs = ",".join(f"{key}:{value}" for key, value in SMALL.items())
    return [
        "methods=[cam,clip_es]", f"methods.clip_es.text={tmp_path / 'text.npz'}",
        f"methods.clip_es.weights={weights}", f"methods.clip_es.tower_kwargs={{{kwargs}}}",
        f"methods.clip_es.blocks={BLOCKS}",
    ]  # fmt: skip


@pytest.mark.usefixtures("undrawn")
def test_it_is_a_method_like_all_others_and_needs_no_classifier(tmp_path, tree, settings, text):
    results = folder_run(tmp_path, tree, *settings, RUN)
    assert set(results["localization"]) == {"cam", "clip_es"}
    assert "gain_over_cam" in results["localization"]["clip_es"]["split"]["val"]
    assert ">CLIP-ES<" in (tmp_path / "out" / "report.html").read_text()
    alone = ("run=[clip_es]", f"store.root={tmp_path / 'other'}")
    again = folder_run(tmp_path, tree, *settings, *alone)
    assert set(again["store"]) == {"clip_es"}
    assert not list((tmp_path / "other").glob("classifier-*"))
    one, two = (Path(r["store"]["clip_es"]) for r in (results, again))
    assert one.name == two.name
    maps = [path.read_bytes() for folder in (one, two) for path in sorted((folder / "maps").iterdir())]
    assert maps[:10] == maps[10:]
    # Another file of the same name, other results.
    rows = text.classes[3:6]
    TextEmbeddings(("b", "a", "z"), rows, text.background_names, text.background).save(tmp_path / "text.npz")
    changed = folder_run(tmp_path, tree, *settings, *alone)
    assert Path(changed["store"]["clip_es"]).name != one.name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["methods.clip_es.text=null"], r"methods\.clip_es: expected text=FILE"),
        (["methods.clip_es.box_threshold=2"], r"methods\.clip_es\.box_threshold"),
        (["methods.clip_es.without_classifier=no way"], r"methods\.clip_es\.without_classifier"),
        (["methods.clip_es.blocks=9"], r"blocks <= 4"),
        (["run=[classifier,methods,segmenter]"], r"segmenter\.sources"),
        (["run=[classifier,methods,refine]"], r"refine\.maps out of cam, clip_es"),
    ],
)
def test_what_cannot_work_ends_the_run_before_the_training(tmp_path, tree, settings, overrides, message):
    with pytest.raises(ConfigError, match=message):
        folder_run(tmp_path, tree, *settings, RUN, *overrides)
    assert not list((tmp_path / "store").glob("classifier-*"))


def test_a_method_that_needs_the_classifier_says_so(tmp_path, tree):
    with pytest.raises(ConfigError, match=r"ribseg\.RIB: .*needs a method features|NoneType needs a method"):
        folder_run(tmp_path, tree, "run=[rib]", "+rib.without_classifier=true")


class Encoder(torch.nn.Module):
    """A text encoder in the place of open_clip's."""

    def encode_text(self, tokens):
        return tokens.float() @ torch.randn(8, 5, generator=torch.Generator().manual_seed(0))


def tokenizer(texts):
    return torch.stack(
        [torch.tensor([(len(t) + sum(map(ord, t)) * n) % 97 for n in range(8)]) for t in texts]
    )


@pytest.fixture
def open_clip(monkeypatch):
    """A stand-in for the package, which records what is asked of it."""
    asked = []

    def create_model(name, pretrained):
        if pretrained == "nix":
            raise RuntimeError("not a known tag")
        asked.append((name, pretrained))
        return Encoder()

    package = types.ModuleType("open_clip")
    package.list_models = lambda: ["ViT-B-16-quickgelu", "ViT-B-16"]
    package.create_model, package.get_tokenizer = create_model, lambda name: tokenizer
    monkeypatch.setitem(sys.modules, "open_clip", package)
    return asked


def test_the_command_embeds_the_names_of_a_file(tmp_path, open_clip, capsys):
    (tmp_path / "names.txt").write_text("bird\ncow: dairy cow\nkeyboard\n")
    main(["text", str(tmp_path / "out.npz"), "--names", str(tmp_path / "names.txt"), "--template", "my {}"])
    assert "3 classes and 24 backgrounds written" in capsys.readouterr().out
    found = read_text_embeddings(tmp_path / "out.npz")
    assert found.names == ("bird", "cow", "keyboard")
    assert "keyboard" not in found.background_names
    expected = F.normalize(Encoder().encode_text(tokenizer(["my bird avian", "my dairy cow", "my keyboard"])))
    torch.testing.assert_close(found.classes, expected)
    assert open_clip == [("ViT-B-16-quickgelu", "openai")]
    (tmp_path / "kinds.txt").write_text("sky\n")
    main(["text", str(tmp_path / "voc.npz"), "--backgrounds", str(tmp_path / "kinds.txt")])
    voc = read_text_embeddings(tmp_path / "voc.npz")
    assert (voc.names, voc.background_names) == (VOC_CLASSES, ("sky",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out.txt"], r"ends in \.npz"),
        (["out.npz", "--names", "nowhere.txt"], r"cannot read nowhere\.txt"),
        (["out.npz", "--template", "a photo"], r"with {} in the place of the words"),
        (["out.npz", "--model", "ViT-X"], r"knows no model 'ViT-X'"),
        (["out.npz", "--weights", "nix"], r"cannot load 'nix'"),
    ],
)
def test_the_command_refuses(arguments, message, open_clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        main(["text", *arguments])
    assert not list(tmp_path.iterdir())


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"pip install 'ribseg\[clip\]'"):
        embedded_names(["dog"])
    with pytest.raises(ConfigError, match="each class once"):
        embedded_names(["dog", "dog"])
    with pytest.raises(ConfigError, match="got none"):
        embedded_names([])


@pytest.mark.nightly
def test_the_text_encoder_of_open_clip():
    """The package itself, with random weights."""
    pytest.importorskip("open_clip")
    found = embedded_names(["dog", "cat"], ["sky"], weights=None)
    assert found.classes.shape == (2, 512)
    torch.testing.assert_close(found.classes.norm(dim=1), torch.ones(2))


def test_one_image_with_the_method_as_an_object(method, recorded):
    classifier = ribseg.Classifier(
        "resnet10t", 20, classes=VOC_CLASSES, backbone_kwargs={"channels": (8, 8, 8, 8)}
    )
    maps = ribseg.localize(recorded["image_b"], ["person"], classifier, method)
    assert maps.full.shape == (1, 64, 48)
    np.testing.assert_allclose(
        maps.full[0].numpy(), recorded["refined_b"][0] / recorded["refined_b"].max(), atol=1e-2
    )
