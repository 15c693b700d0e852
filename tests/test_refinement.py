"""The stages from maps to pseudo masks, on fabricated trees."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from quick_run import folder_run

from ribseg.checks import SettingError
from ribseg.data.io.maps import load_maps
from ribseg.data.io.masks import read_mask
from ribseg.errors import ConfigError, DataError, RibsegError
from ribseg.functional import otsu, score_histogram
from ribseg.pipeline.report.records import mask_name
from ribseg.pipeline.stages.variants import VARIANTS, Variant

TRUTH = [  # the true masks as the maps of another program
    "run=[imported,pseudo_masks,evaluate,report]",
    "imported.layout=masks",
    "refine.maps=imported",
    "refine.maps_threshold=0.5",
    "refine.variants=[none]",
]


def titles(figures):
    """What stands over the pictures of all figures, without thresholds."""
    return {axis.get_title().partition(",")[0].partition(" at ")[0] for each in figures for axis in each.axes}


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("full", ["true", "false"])
def test_a_killed_refinement_goes_on_to_the_same_masks(tmp_path, tree, full):
    run_all = "run=[classifier,rib,refine]", f"maps.full={full}"
    folder = Path(folder_run(tmp_path, tree, *run_all)["store"]["pseudo_masks"])
    whole = {path: path.read_bytes() for path in folder.rglob("*.png")}
    (folder / "manifest.json").unlink()
    for path in list(whole)[::3]:
        path.unlink()
    folder_run(tmp_path, tree, *run_all)
    assert {path: path.read_bytes() for path in folder.rglob("*.png")} == whole


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["refine.variants=[crff]"], "random_walk_crf"),
        (["run=[classifier,rib,pseudo_masks]"], "needs random_walk"),
        (["run=[classifier,rib,refine]", "affinity.module.radius=0"], "radius"),
    ],
)
def test_refinements_that_cannot_work_fail_before_the_training(tmp_path, tree, overrides, message):
    with pytest.raises(ConfigError, match=message):
        folder_run(tmp_path, tree, "run=[classifier,rib,refine]", *overrides)
    assert not list((tmp_path / "store").glob("classifier-*"))


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("splits", ["[val]", "[]"])
def test_masks_without_any_object_are_called_out(tmp_path, tree, capsys, splits):
    folder_run(
        tmp_path,
        tree,
        f"data.eval_splits={splits}",
        "run=[classifier,rib,pseudo_masks]",
        "refine.variants=[none]",
        "refine.maps_threshold=1",
    )
    assert "only background" in capsys.readouterr().out


def test_masks_of_others_are_refined_and_scored(tmp_path, tree, undrawn):
    source = f"imported.folder={tree / 'SegmentationClass'}"
    results = folder_run(tmp_path, tree, *TRUTH, source, "refine.variants=[crf,none]")
    assert results["localization"]["imported"]["best_miou"] == 1
    assert set(results["localization"]) == {"imported"}
    assert results["pseudo_masks"]["variants"]["none"]["val"]["miou"] == 1
    assert results["pseudo_masks"]["variants"]["crf"]["val"]["miou"] > 0.5
    assert not list((tmp_path / "store").glob("classifier-*"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "imported" in page
    assert titles(undrawn) >= {"imported", "true mask"}


def test_imported_maps_are_walked_without_any_classifier(tmp_path, tree):
    """Over a backbone of its own; a shared one is the classifier's, which must be there."""
    source = ("imported.folder=" + str(tree / "SegmentationClass"), *TRUTH)
    run = ("run=[imported,refine]", "refine.variants=[none,random_walk]")
    own = ("affinity.backbone.weights=null", "affinity.backbone.name=resnet10t")
    results = folder_run(tmp_path, tree, *source, *run, *own)
    assert "random_walk" in results["store"]
    assert "classifier" not in results["store"]
    with pytest.raises(ConfigError, match="needs classifier"):
        folder_run(tmp_path, tree, *source, *run)


@pytest.mark.usefixtures("stored")
def test_maps_of_a_store_can_be_imported_into_another(tmp_path, tree):
    first = folder_run(tmp_path, tree, "run=[classifier,cam,evaluate]")
    maps = Path(first["store"]["cam"]) / "maps"
    again = folder_run(
        tmp_path, tree, "run=[imported,evaluate]", f"imported.folder={maps}", f"store.root={tmp_path / 'b'}"
    )
    cam, imported = first["localization"]["cam"], again["localization"]["imported"]
    assert imported["split"]["val"]["iou"] == cam["split"]["val"]["iou"]
    for path in maps.iterdir():
        assert (Path(again["store"]["imported"]) / "maps" / path.name).read_bytes() == path.read_bytes()


def test_changed_files_are_imported_anew(tmp_path, tree):
    folder = tmp_path / "masks"
    shutil.copytree(tree / "SegmentationClass", folder)
    overrides = [*TRUTH, f"imported.folder={folder}", "run=[imported,pseudo_masks,evaluate]"]
    first = folder_run(tmp_path, tree, *overrides)
    assert folder_run(tmp_path, tree, *overrides)["store"] == first["store"]
    Image.new("P", Image.open(folder / "im_01.png").size).save(folder / "im_01.png")
    second = folder_run(tmp_path, tree, *overrides, "run=[imported]")
    assert second["store"]["imported"] != first["store"]["imported"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"imported\.folder=PATH"),
        (["imported.folder={tree}/nowhere"], "no files in .*nowhere"),
        (["imported.folder={tree}/JPEGImages"], r"without a map: 6"),
        (["imported.folder={tree}/SegmentationClass", "imported.layout=irn"], r"without a map: 6"),
        (["imported.folder={tree}/SegmentationClass", "imported.layout=pgn"], r"layout: expected npz \| irn"),
        (["imported.folder={tree}/SegmentationClass", "refine.maps=imports"], r"refine\.maps out of cam"),
    ],
)
def test_imports_that_cannot_work(tmp_path, tree, overrides, message):
    with pytest.raises(RibsegError, match=message):
        folder_run(tmp_path, tree, *TRUTH, *(override.format(tree=tree) for override in overrides))


def test_saliency_of_zeros_and_ones_is_refused_before_the_first_stage(tmp_path, tree, saliency):
    for path in saliency.glob("*.png"):
        Image.fromarray((np.array(Image.open(path)) > 0).astype(np.uint8)).save(path)
    with pytest.raises(DataError, match=r"no pixel of the 10 images in .* exceeds 0\.0039 of white"):
        folder_run(
            tmp_path, tree, "run=[classifier,rib,pseudo_masks]", "refine.variants=[saliency]",
            f"refine.saliency={saliency}",
        )  # fmt: skip
    assert not list((tmp_path / "store").glob("classifier-*"))


def test_every_saliency_map_is_looked_at_before_the_first_stage(tmp_path, tree, saliency):
    given = ("run=[classifier,rib,pseudo_masks]", f"refine.saliency={saliency}")
    with pytest.raises(ConfigError, match=r"has no effect with refine\.variants=\['none'\]"):
        folder_run(tmp_path, tree, *given, "refine.variants=[none]")
    for name in ("im_03", "im_09"):
        (saliency / f"{name}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"files: 2\s.*im_03\.png.*\s.*im_09\.png"):
        folder_run(tmp_path, tree, *given, "refine.variants=[scenes]")
    for path in saliency.iterdir():
        with Image.open(tree / "JPEGImages" / f"{path.stem}.jpg") as photograph:
            Image.new("L", photograph.size[::-1]).save(path)
    with pytest.raises(DataError, match=r"files: 10\s.*im_00\.png is turned"):
        folder_run(tmp_path, tree, *given, "refine.variants=[scenes]")
    for path in saliency.iterdir():
        Image.new("L", (5, 5), 255).save(path)
    with pytest.raises(DataError, match=r"every pixel of the 10 images in .* is salient"):
        folder_run(tmp_path, tree, *given, "refine.variants=[scenes]")
    assert not list((tmp_path / "store").glob("classifier-*"))


@pytest.mark.usefixtures("stored")
def test_saliency_supplies_the_background(tmp_path, tree, saliency):
    overrides = ["run=[classifier,rib,pseudo_masks]", "refine.variants=[none,saliency_crf,saliency]"]
    results = folder_run(tmp_path, tree, *overrides, f"refine.saliency={saliency}")
    # One class an image and its whole object: nothing is left to be wrong.
    assert results["pseudo_masks"]["miou"] == 1
    variants = results["pseudo_masks"]["variants"]
    assert variants["none"]["val"]["miou"] < 1
    assert variants["saliency_crf"]["threshold"] == 0.5
    Image.new("L", (5, 5)).save(saliency / "im_09.png")
    again = folder_run(tmp_path, tree, *overrides, f"refine.saliency={saliency}")
    assert again["store"]["pseudo_masks"] != results["store"]["pseudo_masks"]
    (saliency / "im_09.png").unlink()
    with pytest.raises(RibsegError, match=r"images without any: 1\s+im_09"):
        folder_run(tmp_path, tree, *overrides, f"refine.saliency={saliency}")
    with pytest.raises(ConfigError, match=r"refine\.saliency=PATH"):
        folder_run(tmp_path, tree, *overrides)


def test_an_image_without_a_label_is_background_where_saliency_says_it(tmp_path, tree, saliency):
    """Imported maps may have classes there all the same."""
    labels = tree / "image_labels.csv"
    labels.write_text(labels.read_text().replace("im_09,b", "im_09,"))
    (saliency / "im_09.png").unlink()
    variants = (
        f"refine.saliency={saliency}",
        "refine.variants=[none,saliency]",
        "run=[imported,pseudo_masks]",
    )
    results = folder_run(tmp_path, tree, *TRUTH, f"imported.folder={tree / 'SegmentationClass'}", *variants)
    place = Path(results["store"]["pseudo_masks"])
    assert read_mask(place / "none" / "im_09.png").max() == 2
    assert read_mask(place / "saliency" / "im_09.png").max() == 0
    assert read_mask(place / "saliency" / "im_08.png").max() == 1


@pytest.mark.usefixtures("stored")
def test_a_crf_on_maps_is_another_variant_of_the_same_maps(tmp_path, tree, saliency):
    fixed = ("refine.maps=cam", "refine.variants=[none,crf]", "refine.maps_threshold=0.3")
    run = "run=[classifier,cam,pseudo_masks]"
    one, two = (
        folder_run(tmp_path, tree, run, *fixed, f"refine.crf_unary={unary}")["store"]
        for unary in ("labels", "maps")
    )
    assert one["cam"] == two["cam"]
    files = [sorted(Path(store["pseudo_masks"]).rglob("*/im_*.png")) for store in (one, two)]
    alike = [a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True) if a.parent.name == "none"]
    differ = [a.read_bytes() != b.read_bytes() for a, b in zip(*files, strict=True) if a.parent.name == "crf"]
    assert all(alike)
    assert any(differ)
    variants = ("refine.variants=[saliency_crf]", f"refine.saliency={saliency}")
    with pytest.raises(ConfigError, match=r"crf_unary=labels for variants with saliency"):
        folder_run(tmp_path, tree, run, *fixed, *variants, "refine.crf_unary=maps")
    with pytest.raises(SettingError, match=r"refine\.crf_unary: expected labels \| maps"):
        folder_run(tmp_path, tree, run, *fixed, "refine.crf_unary=scores")


def test_names_of_variants():
    assert len(VARIANTS) == 54
    assert Variant.parse("none") == ("", "", "", False)
    assert Variant.parse("random_walk_saliency_pixel_adaptive") == (
        "random_walk",
        "saliency",
        "pixel_adaptive",
        False,
    )
    assert Variant.parse("crf") == ("", "", "crf", False)
    assert Variant.parse("scenes_crf") == ("", "scenes", "crf", False)
    assert Variant.parse("attention_crf_segments") == ("attention", "", "crf", True)
    assert len({mask_name(variant) for variant in VARIANTS}) == 54


@pytest.mark.usefixtures("stored")
def test_background_scores_by_other_images_and_without_masks(tmp_path, tree):
    overrides = ["run=[classifier,cam,pseudo_masks,evaluate]", "refine.maps=cam", "refine.variants=[none]"]
    found = {}
    for choice in ("oracle", "held_out", "unsupervised"):
        results = folder_run(tmp_path, tree, *overrides, f"refine.maps_threshold={choice}")
        found[choice] = results["pseudo_masks"]["variants"]["none"]["threshold"]
    cam = results["localization"]["cam"]["split"]
    assert found["oracle"] == cam["train"]["best_threshold"]
    assert found["held_out"] == cam["val"]["best_threshold"]
    assert found["unsupervised"] == cam["train"]["unsupervised_threshold"]
    assert 0 <= cam["val"]["miou_unsupervised"] <= cam["val"]["best_miou"]


def test_without_any_masks(tmp_path, tree, undrawn):
    shutil.rmtree(tree / "SegmentationClass")
    overrides = ["data.eval_splits=[]", "run=[classifier,rib,refine,report]"]
    with pytest.raises(ConfigError, match=r"or unsupervised, which needs none"):
        folder_run(tmp_path, tree, *overrides)
    assert not list((tmp_path / "store").glob("classifier-*"))
    # Who makes no masks needs no background score.
    assert "rib" in folder_run(tmp_path, tree, "data.eval_splits=[]", "run=[classifier,rib]")["store"]
    choices = ["refine.maps_threshold=unsupervised", "refine.walk_threshold=unsupervised"]
    results = folder_run(tmp_path, tree, *overrides, *choices)
    folder = Path(results["store"]["pseudo_masks"])
    assert len(list((folder / "random_walk_crf").glob("*.png"))) == 6
    assert "miou" not in results["pseudo_masks"]
    assert "<h2>Pseudo masks</h2>" not in (tmp_path / "out" / "report.html").read_text()
    # Nothing to score with, but something to look at.
    assert "RIB" in titles(undrawn)
    assert (tmp_path / "out" / "grid.png").is_file()
    scores = json.loads((folder / "scores.json").read_text())
    assert 0 <= scores["random_walk_crf"]["threshold"] <= 1


@pytest.mark.usefixtures("stored")
def test_workers_do_not_change_the_digest_but_settings_do(tmp_path, tree):
    stores = []
    for override in ("engine.processes=1", "engine.processes=2", "refine.crf.iterations=1"):
        overrides = ["run=[classifier,cam,pseudo_masks]", "refine.maps=cam", "refine.variants=[crf]"]
        results = folder_run(tmp_path, tree, *overrides, override)
        stores.append(results["store"]["pseudo_masks"])
    assert stores[0] == stores[1] != stores[2]


def test_otsu_separates_two_peaks():
    thresholds = torch.linspace(0, 1, 101)
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(3000, generator=generator) * 0.2
    high = 0.7 + torch.rand(1000, generator=generator) * 0.3
    counts = score_histogram(torch.cat([low, high])[None, None], thresholds)
    assert int(counts.sum()) == 4000
    assert 0.4 < float(thresholds[otsu(counts, thresholds)]) < 0.5
    assert not score_histogram(torch.zeros(0, 5, 5), thresholds).any()
    with pytest.raises(ValueError, match="without a class"):
        otsu(torch.zeros(102, dtype=torch.int64), thresholds)


def test_large_images_are_scaled_down_for_their_maps(tmp_path, tree):
    large = Image.open(tree / "JPEGImages" / "im_00.jpg").resize((115, 85))
    large.save(tree / "JPEGImages" / "im_00.jpg")
    mask = Image.open(tree / "SegmentationClass" / "im_00.png")
    mask.resize((115, 85), Image.Resampling.NEAREST).save(tree / "SegmentationClass" / "im_00.png")
    whole = folder_run(tmp_path, tree, "run=[classifier,cam,evaluate]")["store"]
    stages = ("run=[classifier,cam,refine,evaluate]", "refine.maps=cam")
    small = folder_run(tmp_path, tree, *stages, "data.max_side=40")["store"]
    assert read_mask(Path(small["pseudo_masks"]) / "random_walk_crf" / "im_00.png").shape == (85, 115)
    assert load_maps(Path(small["cam"]) / "maps" / "im_00.npz").size == (85, 115)
    assert whole["classifier"] == small["classifier"]
    assert whole["cam"] != small["cam"]
