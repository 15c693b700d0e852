"""Exchange with other programs: IRN's dictionaries, folders of PNGs, masks, saliency maps."""

import io
import os
import pickle
import runpy
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image

from ribseg.cli import main
from ribseg.data.io.maps import LocalizationMaps, load_maps, save_maps
from ribseg.data.io.masks import write_mask
from ribseg.data.voc import VOCFolder
from ribseg.errors import ConfigError, DataError, DatasetNotFoundError
from ribseg.functional.cam import argmax_labels
from ribseg.functional.saliency import labels_with_saliency
from ribseg.interop import (
    convert_arrays,
    convert_labels,
    convert_maps,
    masks_to_maps,
    read_irn_maps,
    read_psa_maps,
    read_saliency,
    saliency_background,
    write_irn_maps,
)
from ribseg.interop.folders import find_pngs, read_pngs
from ribseg.metrics.evaluation import MapEvaluator


class Malicious:
    """Makes a folder as soon as it is unpickled by a reader that lets it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Nested:
    """Hides something in the bytes of a tensor's storage, which torch would unpickle by itself."""

    def __init__(self, content):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=False)
        self.data = buffer.getvalue()

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.data,)


class Forged:
    """An array of numbers whose element type claims to hold references, which numpy would follow."""

    def __reduce__(self):
        state = (3, "<", None, None, None, 8, 8, 63)
        return np.dtype, ("V8", False, True), state


def irn_dictionary(size=(10, 13), keys=(5, 2)):
    """As IRN's and RIB's make_cam writes them: tensors for keys and cam, an array for high_res."""
    generator = torch.Generator().manual_seed(0)
    strided = -(-size[0] // 4), -(-size[1] // 4)
    return {
        "keys": torch.tensor(keys),
        "cam": torch.rand(len(keys), *strided, generator=generator),
        "high_res": torch.rand(len(keys), *size, generator=generator).numpy(),
    }


def save_irn(path, content, protocol=None):
    path.parent.mkdir(exist_ok=True)
    if protocol is None:
        np.save(path, content)
        return
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"shape": (), "fortran_order": False, "descr": "|O"})
        pickle.dump(np.array(content, dtype=object), file, protocol=protocol)


def save_gray(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("protocol", [None, 2, 3, 4])
@pytest.mark.parametrize("as_numpy", [False, True])
def test_irn_dictionaries_of_tensors_and_arrays(tmp_path, protocol, as_numpy):
    content = irn_dictionary()
    if as_numpy:
        content = {name: np.asarray(value) for name, value in content.items()}
    save_irn(tmp_path / "irn" / "2007_000032.npy", content, protocol)
    save_irn(tmp_path / "irn" / "none.npy", {"keys": content["keys"][:0]}, protocol)
    assert convert_arrays(tmp_path / "irn", tmp_path / "maps", 20) == 2
    maps = load_maps(tmp_path / "maps" / "2007_000032.npz")
    assert maps.classes.tolist() == [2, 5]
    assert maps.size == (10, 13)
    torch.testing.assert_close(maps.strided, torch.as_tensor(content["cam"]).flip(0), atol=5e-4, rtol=0)
    torch.testing.assert_close(maps.full, torch.as_tensor(content["high_res"]).flip(0), atol=5e-4, rtol=0)
    nothing = load_maps(tmp_path / "maps" / "none.npz")
    assert len(nothing.classes) == 0
    # An image without a class is all background at whatever size its mask has.
    evaluator = MapEvaluator(20, torch.tensor([0.5]))
    assert evaluator.count(nothing, torch.zeros(7, 9, dtype=torch.int64)).labels[0, 0, 0] == 63


def test_views_of_tensors_keep_their_strides(tmp_path):
    content = irn_dictionary(size=(8, 8))
    content["cam"] = torch.arange(16).view(2, 2, 4).div(16)[:, :, 1:3].transpose(1, 2)
    content["high_res"] = np.asfortranarray(content["high_res"])
    save_irn(tmp_path / "a.npy", content)
    maps = read_irn_maps(tmp_path / "a.npy", 20)
    assert torch.equal(maps.strided, content["cam"].flip(0))
    assert np.array_equal(maps.full, content["high_res"][::-1])


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("hide", [lambda bad: bad, Nested], ids=["plain", "in a tensor"])
def test_a_malicious_file_is_refused_by_name(tmp_path, protocol, hide):
    harm = tmp_path / "harm"
    save_irn(tmp_path / "irn" / "evil.npy", irn_dictionary() | {"cam": hide(Malicious(harm))}, protocol)
    save_irn(tmp_path / "irn" / "good.npy", irn_dictionary())
    with pytest.raises(DataError, match=r"1 of 2 images[\s\S]*evil\.npy[\s\S]*posix\.mkdir"):
        convert_arrays(tmp_path / "irn", tmp_path / "maps", 20)
    assert not harm.exists()
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["good.npz"]
    # The file is one that would do harm.
    np.load(tmp_path / "irn" / "evil.npy", allow_pickle=True)
    assert harm.exists()


def test_forged_types_and_views_beyond_the_storage_are_refused(tmp_path):
    save_irn(tmp_path / "type.npy", {"keys": Forged()})
    with pytest.raises(DataError, match="'V8' are not read"):
        read_irn_maps(tmp_path / "type.npy", 20)

    class Beyond:
        def __reduce__(self):
            storage = torch.zeros(2).storage()
            return torch._utils._rebuild_tensor_v2, (storage, 1, (2, 9), (9, 1), False, OrderedDict())

    save_irn(tmp_path / "view.npy", {"keys": Beyond()})
    with pytest.raises(DataError, match="out of bounds"):
        read_irn_maps(tmp_path / "view.npy", 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": np.array([1, 20])}, r"0\.\.19 \(the first class is 0\)"),
        ({"keys": np.array([1, 1])}, "different integers"),
        ({"keys": np.array([1])}, "expected 1 maps each"),
        ({"cam": np.zeros((2, 5, 4), np.float32)}, r"stride 4 of high_res, \(3, 4\)"),
        ({"high_res": np.full((2, 10, 13), 7, np.float32)}, "high_res from 0 to 1"),
        ({"cam": np.full((2, 3, 4), np.nan, np.float32)}, "cam from 0 to 1"),
        ({"high_res": None}, r"cannot be read|expected 2 maps"),
        ({"cam": {}}, r"cannot be read|expected 2 maps"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, change, message):
    save_irn(tmp_path / "a.npy", irn_dictionary() | change)
    with pytest.raises(DataError, match=message) as error:
        read_irn_maps(tmp_path / "a.npy", 20)
    assert "a.npy" in str(error.value)


def test_other_npy_files_are_no_dictionaries(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros((2, 3)))
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object))
    np.save(tmp_path / "list.npy", np.array([None], dtype=object).reshape(()))
    np.save(tmp_path / "lacks.npy", {"keys": np.array([1])})
    (tmp_path / "text.npy").write_text("nothing")
    (tmp_path / "empty.npy").write_bytes(b"")
    whole = tmp_path / "whole.npy"
    np.save(whole, irn_dictionary())
    for share in (0.05, 0.3, 0.9):
        (tmp_path / f"cut{share}.npy").write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    bad = sorted(set(tmp_path.iterdir()) - {whole})
    for path in [*bad, tmp_path / "absent.npy"]:
        with pytest.raises(DataError, match=path.name):
            read_irn_maps(path, 20)
    with pytest.raises(DatasetNotFoundError, match="found none"):
        write_irn_maps(tmp_path, tmp_path / "out")


def test_there_and_back_again_is_the_same_file(tmp_path):
    maps = LocalizationMaps(torch.tensor([2, 5]), torch.rand(2, 3, 4), torch.rand(2, 10, 13), (10, 13))
    save_maps(tmp_path / "maps" / "a.npz", maps)
    none = torch.zeros(0, dtype=torch.int64)
    save_maps(tmp_path / "maps" / "b.npz", LocalizationMaps(none, torch.zeros(0, 3, 4), None, (10, 13)))
    assert write_irn_maps(tmp_path / "maps", tmp_path / "irn") == 2
    read = np.load(tmp_path / "irn" / "a.npy", allow_pickle=True).item()
    kinds = {name: (array.dtype.name, array.shape) for name, array in read.items()}
    assert kinds == {
        "keys": ("int64", (2,)),
        "cam": ("float32", (2, 3, 4)),
        "high_res": ("float32", (2, 10, 13)),
    }
    assert list(np.load(tmp_path / "irn" / "b.npy", allow_pickle=True).item()) == ["keys"]
    assert convert_arrays(tmp_path / "irn", tmp_path / "again", 20) == 2
    assert (tmp_path / "again" / "a.npz").read_bytes() == (tmp_path / "maps" / "a.npz").read_bytes()


def test_maps_at_stride_4_are_enlarged_for_irn(tmp_path):
    for name, size in (("known", (10, 13)), ("unknown", None)):
        maps = LocalizationMaps(torch.tensor([2]), torch.rand(1, 3, 4), None, size)
        save_maps(tmp_path / "maps" / f"{name}.npz", maps)
    with pytest.raises(DataError, match=r"1 of 2[\s\S]*unknown\.npz"):
        write_irn_maps(tmp_path / "maps", tmp_path / "irn")
    read = np.load(tmp_path / "irn" / "known.npy", allow_pickle=True).item()
    assert read["high_res"].shape == (1, 10, 13)


def test_pngs_in_both_layouts(tmp_path):
    dog, plane = np.arange(130, dtype=np.uint8).reshape(10, 13), np.full((10, 13), 255, np.uint8)
    save_gray(tmp_path / "a" / "dog.png", dog)
    save_gray(tmp_path / "a" / "aero_plane.png", plane)
    save_gray(tmp_path / "b_dog.png", dog)
    save_gray(tmp_path / "b_aero_plane.png", plane)
    (tmp_path / "empty").mkdir()
    found, problems = find_pngs(tmp_path, ["b", "a", "empty"], ["cat", "dog", "aero_plane"])
    assert not problems
    assert list(found) == ["b", "a", "empty"]
    assert not found["empty"]
    for image_id in ("a", "b"):
        maps = read_pngs(found[image_id])
        assert maps.classes.tolist() == [1, 2]
        assert maps.size == (10, 13)
        assert maps.strided.shape == (2, 3, 4)
        assert np.array_equal(maps.full[0], dog / np.float32(255))
        assert (maps.full[1] == 1).all()


def test_pngs_that_cannot_be_right(tmp_path):
    save_gray(tmp_path / "a" / "dgo.png", np.zeros((4, 4), np.uint8))
    problems = {"not the name of a class": [str(tmp_path / "a" / "dgo.png")]}
    assert find_pngs(tmp_path, ["a", "b"], ["dog"]) == ({"a": {}, "b": {}}, problems)
    save_gray(tmp_path / "x_y_z.png", np.zeros((4, 4), np.uint8))
    assert list(find_pngs(tmp_path, ["x", "x_y"], ["y_z", "z"])[1]) == ["fits two images; use folders <id>/"]
    save_gray(tmp_path / "c" / "dog.png", np.zeros((4, 4), np.uint8))
    save_gray(tmp_path / "c" / "cat.png", np.zeros((4, 5), np.uint8))
    with pytest.raises(DataError, match=r"cat\.png is of \(4, 5\), expected \(4, 4\)"):
        read_pngs(find_pngs(tmp_path, ["c"], ["dog", "cat"])[0]["c"])


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 51]], np.uint8), 0.2),
        (np.array([[0, 65535]], np.uint16), 1.0),
        (np.array([[False, True]]), 1.0),
        (np.repeat(np.array([[0, 51]], np.uint8)[..., None], 3, 2), 0.2),
    ],
)
def test_gray_of_any_depth(tmp_path, array, expected):
    save_gray(tmp_path / "gray.png", array)
    saliency = read_saliency(tmp_path / "gray.png", (1, 2))
    assert saliency.dtype == torch.float32
    torch.testing.assert_close(saliency, torch.tensor([[0.0, expected]]))


def test_colours_and_palettes_are_no_scores(tmp_path):
    write_mask(tmp_path / "mask.png", np.array([[0, 3]]))
    save_gray(tmp_path / "colour.png", np.array([[[1, 2, 3]]], np.uint8))
    for name in ("mask", "colour"):
        with pytest.raises(DataError, match=rf"{name}\.png is an image of mode"):
            read_saliency(tmp_path / f"{name}.png", (1, 2))


def test_masks_come_back_at_any_background_score(tmp_path):
    mask = np.random.default_rng(0).choice([0, 1, 7, 20], size=(9, 14)).astype(np.uint8)
    maps = masks_to_maps(mask)
    assert maps.classes.tolist() == [0, 6, 19]
    for threshold in (0.01, 0.5, 0.99):
        assert np.array_equal(argmax_labels(maps.full, maps.classes, threshold), mask)
    mask[0] = 255
    assert (argmax_labels(masks_to_maps(mask).full, maps.classes, 0.5)[0] == 0).all()
    assert masks_to_maps(np.zeros((4, 5), np.uint8)).full.shape == (0, 4, 5)
    with pytest.raises(ValueError, match=r"expected a mask \(H, W\)"):
        masks_to_maps(np.zeros((3, 4, 5)))


def test_data_sets_give_ids_and_sizes(voc_tree, tmp_path):
    data = VOCFolder(voc_tree, "val", labels="mask")
    assert convert_maps(data.masks_dir, tmp_path / "masks", data, "masks") == 4
    evaluator = MapEvaluator(3, torch.tensor([0.5]))
    for image_id in data.ids:
        evaluator.add(
            evaluator.count(
                load_maps(tmp_path / "masks" / f"{image_id}.npz"), torch.from_numpy(data.mask(image_id))
            )
        )
    assert evaluator.sweep()["best_miou"] == 1
    pngs = tmp_path / "pngs"
    for image_id, labels in zip(data.ids, data.labels, strict=True):
        for c in np.flatnonzero(labels):
            save_gray(
                pngs / image_id / f"{data.classes[c]}.png", (data.mask(image_id) == c + 1) * np.uint8(255)
            )
    # Image 10 has no label and needs no map.
    assert convert_maps(pngs, tmp_path / "maps", data, "png") == 4
    for image_id in data.ids:
        one, other = (load_maps(tmp_path / name / f"{image_id}.npz") for name in ("maps", "masks"))
        assert one.size == other.size == data.mask(image_id).shape
        assert torch.equal(one.full, other.full)
    save_gray(pngs / data.ids[0] / "dog.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(DataError, match=r"1 of 4[\s\S]*other maps"):
        convert_maps(pngs, tmp_path / "other", data, "png")
    Image.new("L", (3, 3)).save(pngs / f"{data.ids[0]}.png")
    with pytest.raises(DataError, match=r"images with a label, but without a map: 2"):
        convert_maps(pngs, tmp_path / "third", data, "masks")
    for image_id in data.ids:
        write_mask(tmp_path / "small" / f"{image_id}.png", np.ones((3, 3), np.uint8))
    with pytest.raises(DataError, match=r"4 of 4[\s\S]*as its image has"):
        convert_maps(tmp_path / "small", tmp_path / "third", data, "masks")


def test_commands(voc_tree, tmp_path, capsys):
    def run(*arguments):
        main(["convert", *map(str, arguments), "--quiet"])
        return capsys.readouterr().out.lstrip("\n")  # rich before 15 ends hidden bars with an empty line

    for name in ("a", "b"):
        save_irn(tmp_path / "irn" / f"{name}.npy", irn_dictionary())
    convert = ("irn-to-ribseg", tmp_path / "irn", tmp_path / "maps", "--classes", 20)
    assert run(*convert).startswith("2 files written")
    (tmp_path / "maps" / "a.npz").unlink()
    before = (tmp_path / "maps" / "b.npz").stat().st_mtime_ns
    assert run(*convert).startswith("1 files written")
    assert (tmp_path / "maps" / "b.npz").stat().st_mtime_ns == before
    assert run("ribseg-to-irn", tmp_path / "maps", tmp_path / "back").startswith("2 files")
    masks = ("masks-to-ribseg", voc_tree / "SegmentationClass", tmp_path / "ones")
    assert run(*masks, "--root", voc_tree, "--split", "val").startswith("4 files")
    with pytest.raises(SystemExit, match=r"^ribseg: the maps in .* cannot be used"):
        run("pngs-to-ribseg", tmp_path / "irn", tmp_path / "x", "--root", voc_tree, "--split", "val")


def test_an_error_of_the_command_is_one_message_and_status_1(tmp_path, monkeypatch):
    arguments = ["irn-to-ribseg", tmp_path / "irn", tmp_path / "maps", "--classes", "20"]
    monkeypatch.setattr(sys, "argv", ["ribseg.interop", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("ribseg.interop", run_name="__main__")
    assert stop.value.code.startswith("ribseg: cannot list the folder ")


def test_saliency_is_resized_and_turned_into_background():
    saliency = np.array([[0, 255], [0, 255]], np.uint8)
    assert read_saliency(saliency, (6, 8)).shape == (6, 8)
    background = saliency_background(saliency, (2, 2))
    assert background.tolist() == [[1, 0], [1, 0]]
    assert torch.equal(saliency_background(saliency / 255.0, (2, 2)), background)
    for bad in (np.full((2, 2), 2.0), np.full((2, 2), np.nan), np.zeros((2, 2, 3)), np.full((2, 2), -1)):
        with pytest.raises(ValueError, match="expected saliency"):
            read_saliency(bad, (2, 2))


def test_saliency_alone_decides_on_the_background():
    maps = torch.tensor([[[0.9, 0.02, 0.0, 0.9]], [[0.1, 0.01, 0.0, 0.0]]])
    classes, saliency = torch.tensor([4, 6]), torch.tensor([[0.9, 0.9, 0.9, 0.5]])
    assert labels_with_saliency(maps, classes, saliency).tolist() == [[5, 5, 255, 0]]
    assert labels_with_saliency(maps, classes, saliency, 0.4).tolist() == [[5, 5, 255, 5]]
    # A single class cannot be mistaken for another one.
    assert labels_with_saliency(maps[:1], classes[:1], saliency).tolist() == [[5, 5, 5, 0]]
    assert labels_with_saliency(maps[:0], classes[:0], saliency).tolist() == [[0, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"expected maps \(K, H, W\)"):
        labels_with_saliency(maps, classes, saliency[:, :2])
    with pytest.raises(ValueError, match="divide 8-bit values"):
        labels_with_saliency(maps, classes, saliency * 255)


def test_the_command_converts_the_whole_files_and_names_every_broken_one(tmp_path):
    for number in range(8):
        save_irn(tmp_path / "irn" / f"bad{number}.npy", irn_dictionary(keys=(30 + number, 2)))
    save_irn(tmp_path / "irn" / "good.npy", irn_dictionary())
    arguments = [
        "irn-to-ribseg",
        tmp_path / "irn",
        tmp_path / "maps",
        "--classes",
        "20",
        "--quiet",
    ]
    with pytest.raises(SystemExit, match="8 of 9 images") as stop:
        main(["convert", *map(str, arguments)])
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["good.npz"]
    assert all(f"bad{number}.npy" in stop.value.code for number in range(8))
    # An output that cannot be written ends it at once: another input would not help.
    (tmp_path / "file").write_text("")
    arguments[2] = tmp_path / "file"
    with pytest.raises(SystemExit, match="cannot write"):
        main(["convert", *map(str, arguments)])


def test_dictionaries_from_class_index_to_map(voc_tree, tmp_path, capsys):
    """As PSA, ACR and S2C write them."""
    data = VOCFolder(voc_tree, "train", labels="mask")
    (tmp_path / "psa").mkdir()
    for image_id, labels in zip(data.ids, data.labels, strict=True):
        ones = {int(c): np.float32(data.mask(image_id) == c + 1) for c in np.flatnonzero(labels)[::-1]}
        np.save(tmp_path / "psa" / f"{image_id}.npy", ones)
    assert convert_maps(tmp_path / "psa", tmp_path / "maps", data, "psa") == 8
    evaluator = MapEvaluator(3, torch.tensor([0.5]))
    for image_id in data.ids:
        maps = load_maps(tmp_path / "maps" / f"{image_id}.npz")
        assert maps.size == data.size(image_id)
        evaluator.add(evaluator.count(maps, torch.from_numpy(data.mask(image_id))))
    assert evaluator.sweep()["best_miou"] == 1
    np.save(tmp_path / "psa" / "none.npy", {})
    main(["convert", "psa-to-ribseg", str(tmp_path / "psa"), str(tmp_path / "all"), "--classes=3", "--quiet"])
    assert "9 files written" in capsys.readouterr().out
    assert len(load_maps(tmp_path / "all" / "none.npz").classes) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({3: np.zeros((4, 4))}, r"indices in 0\.\.2"),
        ({-1: np.zeros((4, 4))}, r"indices in 0\.\.2"),
        ({0: np.zeros((4, 4)), 1: np.zeros((4, 5))}, "of one size"),
        ({0: np.zeros(4)}, r"maps \(height, width\)"),
        ({0: np.full((4, 4), 3.0)}, "divide each map by its maximum"),
        ({0: np.full((4, 4), np.nan)}, "from 0 to 1"),
        ({0: np.zeros((4, 4), np.int64)}, "from 0 to 1"),
        (irn_dictionary(), "IRN's layout, irn"),
    ],
)
def test_what_does_not_fit_into_psas_dictionaries_is_said(tmp_path, content, message):
    np.save(tmp_path / "a.npy", content)
    with pytest.raises(DataError, match=message):
        read_psa_maps(tmp_path / "a.npy", 3)


def test_a_layout_without_arrays_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"layout: expected irn \| amn \| psa"):
        convert_arrays(tmp_path, tmp_path / "out", 3, layout="png")


def test_each_layout_names_the_other(tmp_path):
    np.save(tmp_path / "a.npy", {14: np.zeros((4, 4), np.float32)})
    with pytest.raises(DataError, match=r"found \[14\]; .* PSA's layout, psa"):
        read_irn_maps(tmp_path / "a.npy", 20)


def test_a_map_of_the_background_is_left_out(tmp_path):
    """As AMN's program writes it, before the maps of the classes."""
    content = irn_dictionary()
    save_irn(tmp_path / "irn.npy", content)
    more = {
        "cam": torch.cat([torch.ones(1, 3, 4), content["cam"]]),
        "high_res": np.concatenate([np.ones((1, 10, 13), np.float32), content["high_res"]]),
    }
    save_irn(tmp_path / "amn.npy", content | more)
    irn = read_irn_maps(tmp_path / "irn.npy", 20)
    amn = read_irn_maps(tmp_path / "amn.npy", 20, background_first=True)
    assert torch.equal(irn.classes, amn.classes)
    assert torch.equal(irn.strided, amn.strided)
    assert torch.equal(irn.full, amn.full)
    save_irn(tmp_path / "half.npy", content | {"cam": more["cam"]})
    for name in ("half", "irn"):  # without it they are no files of AMN's
        with pytest.raises(DataError, match=r"(half|irn)\.npy holds no maps"):
            read_irn_maps(tmp_path / f"{name}.npy", 20, background_first=True)
    with pytest.raises(DataError, match=r"expected 2 maps each, .* AMN's layout, amn"):
        read_irn_maps(tmp_path / "amn.npy", 20)
    (tmp_path / "amn").mkdir()
    (tmp_path / "amn.npy").rename(tmp_path / "amn" / "a.npy")
    main(["convert", "amn-to-ribseg", str(tmp_path / "amn"), str(tmp_path), "--classes=20", "--quiet"])
    assert torch.equal(load_maps(tmp_path / "a.npz").classes, irn.classes)


@pytest.mark.parametrize("protocol", [None, 2, 4])
def test_cls_labels_become_the_csv_of_the_labels(voc_tree, tmp_path, protocol, capsys):
    data = VOCFolder(voc_tree, "train", labels="mask")
    names = voc_tree / "classes.txt"
    numbers = {
        np.int32(i.replace("_", "")): row for i, row in zip(data.ids, np.float32(data.labels), strict=True)
    }
    for source, content in (("numbers", numbers), ("strings", dict(zip(data.ids, data.labels, strict=True)))):
        save_irn(tmp_path / f"{source}.npy", content, protocol)
        command = ["labels-to-csv", tmp_path / f"{source}.npy", tmp_path / f"{source}.csv", "--names", names]
        main(["convert", *map(str, command)])
        assert "labels of 8 images" in capsys.readouterr().out
        found = VOCFolder(voc_tree, "train", labels=tmp_path / f"{source}.csv")
        assert np.array_equal(found.labels, data.labels)
    with pytest.raises(SystemExit, match="is there already"):
        main(["convert", *map(str, command)])


def test_ids_of_coco_have_twelve_digits(tmp_path):
    np.save(tmp_path / "a.npy", {57870: np.array([1.0, 0.0]), "own": np.zeros(2)})
    assert convert_labels(tmp_path / "a.npy", tmp_path / "a.csv", ["x", "y"]) == 2
    assert (tmp_path / "a.csv").read_text() == "image,classes\n000000057870,x\nown,\n"


@pytest.mark.parametrize(
    ("content", "classes", "message"),
    [
        ({"a": np.zeros(3)}, "xy", r"of 2 classes[\s\S]*a: float64 \(3,\)"),
        ({"a": np.full(2, 0.5)}, "xy", r"of 0\.5 to 0\.5"),
        ({"a": np.full(2, np.nan)}, "xy", "not labels"),
        ({"a": np.zeros((1, 2))}, "xy", r"\(1, 2\)"),
        ({}, "xy", "no image"),
        ({"a": np.zeros(2)}, ["x", "y z"], "hold no spaces"),
        ({57870: np.zeros(2), "000000057870": np.zeros(2)}, "xy", "twice"),
        ({"a": Malicious("never")}, "xy", r"posix\.mkdir"),
    ],
)
def test_what_are_no_labels_is_said(tmp_path, content, classes, message):
    np.save(tmp_path / "a.npy", content)
    with pytest.raises(DataError, match=message):
        convert_labels(tmp_path / "a.npy", tmp_path / "a.csv", classes)
    assert not (tmp_path / "a.csv").exists()
