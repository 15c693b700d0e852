"""Saliency maps by a network, and masks where they decide on some classes of an image alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from quick_run import folder_run

from ribseg.cli import main
from ribseg.data.io.masks import read_mask
from ribseg.errors import ConfigError
from ribseg.functional import labels_with_saliency, labels_with_scene_saliency
from ribseg.models.saliency import SaliencyNetwork

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def network_file(path, side=32, channels=3, out=None, scale=1.0, image=None, kind="FLOAT"):
    """An ONNX network whose map is the mean over the normalised channels, times `scale`, and .5."""
    helper, number = onnx.helper, getattr(onnx.TensorProto, kind)
    given = helper.make_tensor_value_info("image", number, image or [1, channels, side, side])
    made = helper.make_tensor_value_info("map", number, out or [1, 1, side, side])
    constants = [
        helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [1]),
        helper.make_tensor("scale", number, [], [scale]),
        helper.make_tensor("half", number, [], [0.5]),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=1),
        helper.make_node("Mul", ["mean", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "half"], ["map"]),
    ]
    graph = helper.make_graph(nodes, "saliency", [given], [made], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def photograph():
    """Black, with a white rectangle."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:30, 15:45] = 255
    return pixels


@pytest.mark.parametrize(("side", "kind"), [(32, "FLOAT"), ("side", "FLOAT"), (32, "FLOAT16")])
def test_a_map_is_of_the_photographs_size(tmp_path, photograph, side, kind):
    file = network_file(tmp_path / "n.onnx", side, kind=kind)
    network = SaliencyNetwork(file, side=None if side == 32 else 96)
    assert network.side == (32 if side == 32 else 96)
    found = network(photograph)
    assert (found.shape, found.dtype) == ((40, 60), np.uint8)
    assert (found[15:25, 20:40] == 255).all()
    assert (found[:4] == 0).all()


def test_logits_become_values_from_0_to_1(tmp_path, photograph):
    network = SaliencyNetwork(network_file(tmp_path / "n.onnx", scale=30.0), "birefnet")
    found = network(photograph)
    assert found[20, 30] == 255
    assert found[0, 0] == 0


@pytest.mark.parametrize(
    ("given", "kind", "side", "message"),
    [
        (
            {"out": [1, 1, 32, 32], "scale": 30.0},
            "isnet",
            None,
            r"gives values from -14\.5 to -14\.5; expected",
        ),
        ({"channels": 4}, "isnet", None, r"takes image \[1, 4, 32, 32\].*; expected one RGB image"),
        ({"image": [1, 3, 32, 48], "out": ["a", 1, "b", "c"]}, "isnet", None, "expected one RGB image"),
        ({"image": [4, 3, 32, 32], "out": ["a", 1, "b", "c"]}, "isnet", None, "expected one RGB image"),
        ({"kind": "DOUBLE"}, "isnet", None, r"tensor\(double\); expected one RGB image"),
        ({"scale": 0.1}, "birefnet", None, "from 0 to 1, no logits"),
        ({}, "isnet", 64, "takes images of 32 pixels alone, not of side=64"),
        ({}, "resnet", None, r"kind: expected isnet | u2net"),
    ],
)
def test_what_is_no_saliency_network_is_refused(tmp_path, given, kind, side, message):
    with pytest.raises(ConfigError, match=message):
        SaliencyNetwork(network_file(tmp_path / "n.onnx", **given), kind, side)


def test_a_classifier_is_no_saliency_network(tmp_path):
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    given = helper.make_tensor_value_info("image", float32, [1, 3, 32, 32])
    made = helper.make_tensor_value_info("logits", float32, [1, 3, 1, 1])
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["image"], ["logits"])], "classifier", [given], [made]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "n.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match=r"gives \(1, 3, 1, 1\); expected one map of 32x32"):
        SaliencyNetwork(tmp_path / "n.onnx")


def test_a_broken_or_absent_file_is_named(tmp_path):
    (tmp_path / "n.onnx").write_bytes(b"no network")
    with pytest.raises(ConfigError, match=r"n\.onnx cannot be read as an ONNX network"):
        SaliencyNetwork(tmp_path / "n.onnx")
    with pytest.raises(ConfigError, match=r"at .*absent\.onnx, found nothing"):
        SaliencyNetwork(tmp_path / "absent.onnx")
    with pytest.raises(ConfigError, match="found a folder"):
        SaliencyNetwork(tmp_path)


def test_without_onnxruntime_the_extra_is_named(tmp_path, monkeypatch):
    path = network_file(tmp_path / "n.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"pip install 'ribseg\[saliency\]'"):
        SaliencyNetwork(path)


@pytest.fixture
def command(tmp_path, photograph):
    """The command on three photographs, a to c, which has been run once into the folder maps."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name in ("a", "b", "c"):
        Image.fromarray(photograph).save(folder / f"{name}.png")
    words = ["saliency", folder, "--network", network_file(tmp_path / "n.onnx"), "--quiet"]
    words = [*map(str, words), "--out", str(tmp_path / "maps")]
    main(words)
    return words


def test_the_command_goes_on_where_it_stopped(tmp_path, command, capsys):
    folder, out = tmp_path / "photographs", tmp_path / "maps"
    (out / "b.png").unlink()
    kept = (out / "a.png").stat().st_mtime_ns
    main(command)
    assert "2 maps are there already" in capsys.readouterr().out
    assert (out / "a.png").stat().st_mtime_ns == kept
    assert Image.open(out / "b.png").size == (60, 40)
    network_file(tmp_path / "n.onnx", scale=0.9)
    with pytest.raises(SystemExit, match="holds maps of another network"):
        main(command)
    main([*command[:-1], str(tmp_path / "others")])
    for path in (tmp_path / "others").glob("*.png"):
        path.unlink()
    network_file(tmp_path / "n.onnx", scale=0.8)
    main([*command[:-1], str(tmp_path / "others")])  # it holds none any more
    (folder / "d.png").write_bytes(b"no image")
    network_file(tmp_path / "n.onnx")
    with pytest.raises(SystemExit, match="1 of 1 images could not be read"):
        main(command)


@pytest.mark.usefixtures("stored")
def test_a_run_makes_the_maps_and_masks_by_class(tmp_path, tree):
    given = ("run=[classifier,rib,refine]", "refine=saliency", "refine.variants=[none,scenes,saliency]")
    network = network_file(tmp_path / "n.onnx")
    results = folder_run(tmp_path, tree, *given, f"refine.saliency_network={network}")
    made = Path(results["store"]["saliency"])
    assert len(list((made / "maps").glob("*.png"))) == 10
    assert set(results["pseudo_masks"]["variants"]) == {"none", "scenes", "saliency"}
    manifest = json.loads((made / "manifest.json").read_text())
    assert str(network) not in json.dumps(manifest["settings"])  # its content counts, not its place
    moved = network.rename(tmp_path / "moved.onnx")
    again = folder_run(tmp_path, tree, *given, f"refine.saliency_network={moved}")
    assert again["store"] == results["store"]
    network_file(moved, scale=0.5)
    other = folder_run(tmp_path, tree, *given, f"refine.saliency_network={moved}")
    for name in ("saliency", "pseudo_masks"):
        assert other["store"][name] != results["store"][name]
    assert other["store"]["rib"] == results["store"]["rib"]
    with pytest.raises(ConfigError, match=r"needs refine\.saliency_network=FILE"):
        folder_run(tmp_path, tree, *given)
    with pytest.raises(ConfigError, match=r"saliency_network has no effect with refine\.saliency=None"):
        folder_run(tmp_path, tree, *given, "refine.saliency=null", f"refine.saliency_network={moved}")


@pytest.mark.usefixtures("stored")
def test_what_saliency_does_not_speak_about_is_cut(tmp_path, tree, saliency):
    given = ("run=[classifier,rib,pseudo_masks]", f"refine.saliency={saliency}", "refine.maps_threshold=0.4")
    given = (*given, "refine.variants=[none,scenes,saliency]")
    all_spoken = folder_run(tmp_path, tree, *given, "refine.scenes.overlap=0", "refine.scenes.cut=0")
    none_spoken = folder_run(tmp_path, tree, *given, "refine.scenes.overlap=1", "refine.scenes.cut=1")
    place = Path(all_spoken["store"]["pseudo_masks"])
    for path in (place / "saliency").glob("*.png"):
        old, new = read_mask(path), read_mask(place / "scenes" / path.name)
        assert ((old == new) | (new == 255)).all()  # 255 where the map of the one class is zero
    scores = [found["pseudo_masks"]["variants"]["scenes"]["val"] for found in (all_spoken, none_spoken)]
    assert scores[0]["miou"] > scores[1]["miou"]
    assert scores[1]["foreground"] == 0


MAPS = torch.tensor([[[0.9, 0.8, 0.1, 0.0, 0.0, 0.0]], [[0.2, 0.6, 0.0, 0.9, 0.8, 0.3]]])
CLASSES = torch.tensor([0, 3])


def scene(saliency, **settings):
    return labels_with_scene_saliency(MAPS, CLASSES, torch.tensor([saliency]).float(), **settings)[0].tolist()


@pytest.mark.parametrize(
    ("saliency", "expected"),
    [
        ([1, 1, 1, 0, 0, 0], [1, 1, 1, 4, 4, 0]),  # it speaks about the first; the second covers 1 of 3 there
        ([0, 0, 0, 0, 0, 0], [1, 1, 0, 4, 4, 0]),  # nothing is salient: all are cut
        ([1, 1, 1, 1, 1, 1], [1, 1, 1, 4, 4, 4]),  # all is salient, and shared by the maps
        ([0, 0, 1, 0, 0, 0], [1, 1, 255, 4, 4, 0]),  # of something else
    ],
)
def test_each_class_is_asked_whether_saliency_speaks_about_it(saliency, expected):
    assert scene(saliency, overlap=0.4) == expected


def test_a_salient_region_of_no_class_is_not_theirs():
    maps = torch.tensor([[[0.9, 0.0, 0.3, 0.0]]])
    saliency = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    assert labels_with_scene_saliency(maps, CLASSES[:1], saliency).tolist() == [[1, 0, 255, 0]]
    assert labels_with_scene_saliency(maps, CLASSES[:1], saliency, cut=0.2).tolist() == [[1, 0, 1, 0]]


def test_with_every_class_spoken_about_it_is_the_other_rule():
    generator = torch.Generator().manual_seed(0)
    maps, saliency = torch.rand(2, 9, 11, generator=generator), torch.rand(9, 11, generator=generator)
    new = labels_with_scene_saliency(maps, CLASSES, saliency, overlap=0, cut=0)
    assert torch.equal(new, labels_with_saliency(maps, CLASSES, saliency))


def test_images_without_class_and_wrong_values():
    empty = labels_with_scene_saliency(MAPS[:0], CLASSES[:0], torch.ones(1, 6))
    assert empty.tolist() == [[0] * 6]
    with pytest.raises(ValueError, match="divide 8-bit values by 255"):
        scene([255, 0, 0, 0, 0, 0])
    with pytest.raises(ConfigError, match="overlap"):
        scene([1, 0, 0, 0, 0, 0], overlap=2)


def test_what_is_no_map_of_the_photograph_is_made_again(tmp_path, command):
    folder, out = tmp_path / "photographs", tmp_path / "maps"
    good = (out / "a.png").read_bytes()
    (out / "b.png").write_bytes(b"broken")
    Image.new("L", (5, 5)).save(out / "c.png")
    main(command)
    assert (out / "b.png").read_bytes() == (out / "c.png").read_bytes() == good
    (out / "saliency.json").write_text("{")
    with pytest.raises(SystemExit, match="holds maps of another network, or of other programs"):
        main(command)
    with pytest.raises(SystemExit, match="is the folder of the images"):
        main([*command[:-1], str(folder)])
