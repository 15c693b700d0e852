"""What people bring is read as they mean it, or refused: class names, imported maps, folders of files."""

import numpy as np
import pytest
import torch
from PIL import Image
from quick_run import folder_run

import ribseg
from ribseg.commands.files import targets_of
from ribseg.data.io.maps import LocalizationMaps, load_maps, save_maps
from ribseg.data.io.masks import read_mask, write_class_names, write_mask
from ribseg.data.voc import VOCFolder
from ribseg.errors import DataError
from ribseg.interop import check_imported, convert_maps
from ribseg.models import load_into

CAM = ("run=[classifier,cam]", "classifier.model.backbone=resnet10t")


def swapped(tree):
    """The tree with its two classes in the other order; labels have names, and masks are renumbered."""
    (tree / "classes.txt").write_text("b\na\n")
    for path in (tree / "SegmentationClass").glob("*.png"):
        write_mask(path, np.array([0, 2, 1] + [255] * 253, np.uint8)[read_mask(path)])


def maps_by_name(results, tree, data=None):
    data = data or VOCFolder(tree, "val")
    folder = results["store"]["cam"]
    found = {i: load_maps(f"{folder}/maps/{i}.npz") for i in data.ids}
    return {i: dict(zip(maps.names, maps.full, strict=True)) for i, maps in found.items()}


def test_a_classifier_over_the_same_classes_in_another_order(tmp_path, tree, stored):
    first = folder_run(tmp_path, tree, "run=[classifier,cam]")
    expected, file = maps_by_name(first, tree), f"{first['store']['classifier']}/classifier.safetensors"
    swapped(tree)
    again = folder_run(tmp_path, tree, "run=[classifier,cam]", f"classifier.checkpoint={file}")
    found = maps_by_name(again, tree)
    for image_id, maps in expected.items():
        assert found[image_id].keys() == maps.keys() != set()
        for name in maps:
            assert torch.allclose(found[image_id][name], maps[name], atol=1e-3)
    (tree / "classes.txt").write_text("b\nc\n")
    (tree / "image_labels.csv").write_text((tree / "image_labels.csv").read_text().replace(",a", ",c"))
    with pytest.raises(DataError, match=r"lacks \['c'\] of classes\.txt, and has \['a'\]"):
        folder_run(tmp_path, tree, "run=[classifier,cam]", f"classifier.checkpoint={file}")


def test_rows_of_all_heads_follow_the_names(tmp_path):
    network = ribseg.models.ReCAMClassifier("resnet10t", 3, classes=["a", "b", "c"])
    network.save(tmp_path / "c.safetensors")
    other = ribseg.models.ReCAMClassifier("resnet10t", 3, classes=["c", "a", "b"])
    load_into(other, tmp_path / "c.safetensors")
    for one, two in ((network.weight, other.weight), (network.second.weight, other.second.weight)):
        assert torch.equal(one[[2, 0, 1]], two)


def maps_of(data, image_id, classes, scale=1.0, names=()):
    height, width = data.size(image_id)
    full = scale * torch.rand(len(classes), height, width)
    strided = full[:, ::4, ::4]
    return LocalizationMaps(torch.tensor(classes), strided, full, (height, width), names)


def imported(tmp_path, data, maps):
    for image_id in data.ids:
        save_maps(tmp_path / "given" / f"{image_id}.npz", maps(image_id))
    convert_maps(tmp_path / "given", tmp_path / "maps", data, "npz")
    check_imported(tmp_path / "maps", data)
    return load_maps(tmp_path / "maps" / f"{data.ids[0]}.npz")


def own_class(data, image_id):
    return int(np.flatnonzero(data.labels[data.index(image_id)])[0])


def test_imported_maps_with_names_are_ordered_by_them(tmp_path, tree):
    data = VOCFolder(tree, "train")  # of the classes a, b
    given = {i: maps_of(data, i, [0, 1], names=("b", "a")) for i in data.ids}
    found = imported(tmp_path, data, given.get)
    assert torch.allclose(found.full, given[data.ids[0]].full[[1, 0]], atol=1e-3)
    assert found.names == ("a", "b")
    with pytest.raises(DataError, match=r"classes that the data does not have: \['c'\]"):
        imported(tmp_path / "other", data, lambda i: maps_of(data, i, [0], names=("c",)))


def test_imported_maps_that_were_never_scaled(tmp_path, tree):
    data = VOCFolder(tree, "train")
    with pytest.raises(DataError, match=r"no imported map of train exceeds 0\.004.*divided by its maximum"):
        imported(tmp_path, data, lambda i: maps_of(data, i, [own_class(data, i)], 0.004))


def test_imported_maps_none_of_which_is_of_a_class_of_its_image(tmp_path, tree):
    data = VOCFolder(tree, "train")
    with pytest.raises(DataError, match="labels and imported maps of train contradict each other"):
        imported(tmp_path, data, lambda i: maps_of(data, i, [1 - own_class(data, i)]))


def test_masks_beside_names_are_read_by_them(tmp_path, tree):
    data = VOCFolder(tree, "train")
    for image_id in data.ids:
        write_mask(tmp_path / "masks" / f"{image_id}.png", data.mask(image_id))
    write_class_names(tmp_path / "masks", ["b", "a"])
    convert_maps(tmp_path / "masks", tmp_path / "maps", data, "masks")
    classes = [load_maps(tmp_path / "maps" / f"{i}.npz").classes.tolist() for i in data.ids]
    assert classes == [[1 - own_class(data, i)] for i in data.ids]
    write_class_names(tmp_path / "masks", ["b", "c"])
    with pytest.raises(DataError, match=r"classes\.txt of .* is of other classes"):
        convert_maps(tmp_path / "masks", tmp_path / "maps", data, "masks")


def test_a_folder_of_photographs(tmp_path, capsys):
    for name in ("a.jpg", "b.webp", "c.tif", "d.bmp", "e.jfif", "f.gif", "g.PNG"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, "JPEG" if name == "e.jfif" else None)
    (tmp_path / "._a.jpg").write_bytes(b"\0\5\26\7")
    (tmp_path / "h.heic").write_bytes(b"")
    found = targets_of([tmp_path], tmp_path / "out", ".npz")
    assert [path.stem for path in found] == list("abcdefg")
    assert "1 files are passed over (h.heic)" in capsys.readouterr().err
