"""The files in examples/, used as their first lines say: from outside the package, by `_target_` alone."""

import json
from pathlib import Path

import pytest
from PIL import Image
from quick_run import QUICK, folder_run

import ribseg
from ribseg.data import VOCFolder

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.usefixtures("stored")
def test_an_own_method_takes_part_in_everything(tmp_path, tree, undrawn):
    own = ("+methods.jittered._target_=own_method.JitteredCAM", "+methods.jittered.noise=0.5")
    segmenter = ("segmenter.sources=[jittered]", "refine.variants=[none]")
    run = "run=[classifier,methods,evaluate,pseudo_masks_jittered,segmenter,report]"
    results = folder_run(tmp_path, tree, *own, *segmenter, run)
    assert {"cam", "rib", "jittered"} <= set(results["localization"])
    assert results["localization"]["jittered"]["label"] == "jittered"
    assert results["localization"]["jittered"]["best_miou"] != results["localization"]["cam"]["best_miou"]
    assert results["methods"]["jittered"]["images"] == 10
    assert 0 <= results["segmenter"]["jittered"]["miou"] <= 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert ">jittered<" in page
    assert "pseudo masks of jittered" in page
    titles = [axis.get_title() for figure in undrawn for axis in figure.axes]
    assert any(title.startswith("jittered") for title in titles)
    manifest = json.loads((Path(results["store"]["jittered"]) / "manifest.json").read_text())
    assert set(manifest["settings"]["sources"]) == {"own_method.JitteredCAM"}


@pytest.mark.usefixtures("stored")
def test_an_own_pooling_changes_the_maps_of_rib(tmp_path, tree):
    own = ("pooling=gap", "pooling._target_=own_pooling.TopShare", "+pooling.share=0.1")
    run = ("run=[classifier,rib,evaluate]", "rib.lr=1e-1")
    plain = folder_run(tmp_path, tree, "pooling=gap", *run)
    results = folder_run(tmp_path, tree, *own, *run)
    assert results["localization"]["rib"] != plain["localization"]["rib"]
    assert results["store"]["classifier"] == plain["store"]["classifier"]


@pytest.mark.usefixtures("stored")
def test_a_method_that_is_left_out_is_not_there(tmp_path, tree):
    results = folder_run(
        tmp_path,
        tree,
        "methods.rib=null",
        "methods.wrong_class=null",
        "refine.maps=cam",
        "run=[classifier,methods,controls,evaluate]",
    )
    assert set(results["localization"]) == {"cam", "feature_norm", "centre_prior", "whole_image"}


def test_a_plain_loop(tmp_path, tree):
    from plain_pytorch import main

    out = tmp_path / "c.safetensors"
    command = [str(tree), "--backbone", "resnet10t", "--epochs", "1", "--crop", "32", "--images", "2"]
    scores = main([*command, "--out", str(out)])
    assert set(scores) == {"cam", "rib"}
    assert all(0 <= value <= 1 for value in scores.values())
    assert ribseg.load(out).classes == VOCFolder(tree, "train").classes


def test_an_own_lightning_module(tmp_path, tree):
    from own_lightning_module import main

    maps = main([str(tree), "--backbone", "resnet10t", "--epochs", "1", "--crop", "32"])
    assert len(maps) == len(VOCFolder(tree, "val").ids)
    own = ("classifier.module._target_=own_lightning_module.FocalClassifier", "+classifier.module.gamma=1.0")
    results = folder_run(tmp_path, tree, *own, "run=[classifier]")
    assert "train/loss" in results["classifier"]


def test_a_classifier_of_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers")
    from hugging_face import main

    sizes = {"hidden_sizes": [8, 8, 12, 16], "depths": [1, 1, 1, 1], "embedding_size": 8, "num_labels": 3}
    config = transformers.ResNetConfig(**sizes, id2label={0: "cat", 1: "dog", 2: "cow"})
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "model")
    processor = transformers.ConvNextImageProcessor(image_mean=[0.5] * 3, image_std=[0.2] * 3)
    processor.save_pretrained(tmp_path / "model")
    Image.new("RGB", (70, 50), "red").save(tmp_path / "photo.png")
    out = tmp_path / "out.png"
    maps = main(
        [
            str(tmp_path / "photo.png"),
            "--model",
            str(tmp_path / "model"),
            "--labels",
            "dog",
            "--out",
            str(out),
        ]
    )
    assert maps.names == ("dog",)
    assert Image.open(out).size[0] > 100


def test_own_photographs_come_to_masks(tmp_path, tree):
    from own_photographs import main

    photographs = sorted((tree / "JPEGImages").iterdir())[:4]
    rows = [f"{path.name},{name}" for path, name in zip(photographs, ("a", "b", "a b", "b"), strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    masks = main(
        [
            str(tree / "JPEGImages"),
            str(tmp_path / "labels.csv"),
            "--out",
            str(tmp_path / "out"),
            *QUICK,
            "classifier=scratch",
            "data.mean=[0.5,0.5,0.5]",
        ]
    )
    assert len(list(masks.glob("*.png"))) == 4
    assert (tmp_path / "out/report.html").is_file()
