"""The segmenter at the end of the chain, and what leaves the house."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from quick_run import LIGHT, begun, chosen, folder_run, settings
from safetensors.torch import load_file

import ribseg
from ribseg.data.io.masks import write_mask
from ribseg.errors import ConfigError, DataError, DatasetNotFoundError
from ribseg.interop.voc_server import archive_folder, check_voc_archive, write_voc_archive
from ribseg.modules.segmentation import SegmentationModule
from ribseg.pipeline.run import run

WHOLE = "run=[classifier,cam,rib,refine,segmenter,report]"
ALL = "segmenter.sources=[rib,cam,full]"


def miou_of(folder, tree, split):
    """By hand, from the PNGs."""
    ids = (tree / "ImageSets/Segmentation" / f"{split}.txt").read_text().split()
    pairs = [
        (
            np.array(Image.open(folder / f"{i}.png")),
            np.array(Image.open(tree / "SegmentationClass" / f"{i}.png")),
        )
        for i in ids
    ]
    predicted, true = (np.concatenate([pair[k].ravel() for pair in pairs]) for k in (0, 1))
    predicted, true = predicted[true != 255], true[true != 255]
    ious = []
    for label in range(3):
        union = ((predicted == label) | (true == label)).sum()
        if union:
            ious.append(((predicted == label) & (true == label)).sum() / union)
    return float(np.mean(ious))


@pytest.mark.usefixtures("stored", "undrawn")
def test_the_whole_chain_with_both_baselines(tmp_path, tree):
    results = folder_run(tmp_path, tree, WHOLE, ALL)
    assert set(results["segmenter"]) == {"rib", "cam", "full"}
    for source, scores in results["segmenter"].items():
        folder = Path(results["store"][f"segmenter_test_{source}"]) / "val"
        assert scores["miou"] == pytest.approx(miou_of(folder, tree, "val"))
        assert len(scores["iou"]) == 3
        assert scores["split"]["val"]["images"] == 4
        for path in folder.iterdir():
            mask = Image.open(path)
            assert mask.mode == "P"
            assert mask.size == Image.open(tree / "JPEGImages" / f"{path.stem}.jpg").size
    # Each learnt from the masks over its own maps.
    stages = {name: Path(folder).name for name, folder in results["store"].items()}
    assert stages["pseudo_masks"] != stages["pseudo_masks_cam"]
    read = {}
    for source in ("rib", "cam", "full"):
        manifest = json.loads((Path(results["store"][f"segmenter_{source}"]) / "manifest.json").read_text())
        read[source] = set(manifest["inputs"].values()) - {stages["classifier"]}
    assert read == {"rib": {stages["pseudo_masks"]}, "cam": {stages["pseudo_masks_cam"]}, "full": set()}
    chain = json.loads((Path(results["store"]["pseudo_masks_cam"]) / "manifest.json").read_text())
    assert chain["facts"]["variants"] == ["random_walk_crf"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "pseudo masks of CAM" in page
    assert "ground truth (bound)" in page


@pytest.mark.usefixtures("stored")
def test_the_other_chain_is_what_a_run_over_its_maps_makes(tmp_path, tree):
    variants = "refine.variants=[crf]"
    first = folder_run(
        tmp_path, tree, variants, "run=[classifier,cam,rib,pseudo_masks,pseudo_masks_cam]", ALL
    )
    second = folder_run(tmp_path, tree, variants, "run=[pseudo_masks]", "refine.maps=cam", ALL)
    assert first["store"]["pseudo_masks_cam"] == second["store"]["pseudo_masks"]
    assert first["store"]["pseudo_masks"] == second["store"]["pseudo_masks_rib"]


def run_names(tmp_path, names, sources, maps):
    """The stages of a run."""
    cfg = settings("rib_folder", tmp_path, f"segmenter.sources=[{sources}]", f"refine.maps={maps}")
    return chosen(cfg, tmp_path, names)


def test_run_names(tmp_path):
    both = run_names(tmp_path, ["refine", "segmenter"], "cam,full", "rib")
    assert {
        "pseudo_masks",
        "pseudo_masks_cam",
        "affinity_cam",
        "segmenter_full",
        "segmenter_test_cam",
    } <= set(both)
    assert run_names(tmp_path, ["refine"], "cam", "rib") == [
        "affinity_labels",
        "affinity",
        "random_walk",
        "pseudo_masks",
    ]
    assert "pseudo_masks_cam" not in run_names(tmp_path, ["refine", "segmenter"], "cam", "cam")
    names = [stage.name for stage in begun(settings("rib_folder", tmp_path), tmp_path).run.stages]
    assert len(set(names)) == len(names)


@pytest.mark.usefixtures("stored")
def test_other_tests_do_not_train_again_and_other_recipes_do(tmp_path, tree):
    first = folder_run(tmp_path, tree, *LIGHT)["store"]
    tested = folder_run(tmp_path, tree, *LIGHT, "segmenter.test.flip=false")["store"]
    assert tested["segmenter_rib"] == first["segmenter_rib"]
    assert tested["segmenter_test_rib"] != first["segmenter_test_rib"]
    trained = folder_run(tmp_path, tree, *LIGHT, "segmenter.module.lr=1e-5")["store"]
    assert trained["segmenter_rib"] != first["segmenter_rib"]
    assert trained["pseudo_masks"] == first["pseudo_masks"]


@pytest.mark.nightly
def test_crf_processes_and_none_give_the_same_masks(tmp_path, tree, stored):
    (tested,) = stored.glob("segmenter_test_rib-*")
    masks = {path.name: path.read_bytes() for path in (tested / "val").iterdir()}
    shutil.rmtree(tested)
    folder_run(tmp_path, tree, *LIGHT, "engine.processes=2")
    assert len(masks) == 4
    assert {path.name: path.read_bytes() for path in (tested / "val").iterdir()} == masks


@pytest.mark.usefixtures("stored")
def test_killed_training_and_test_go_on(tmp_path, tree, monkeypatch, capsys):
    results = folder_run(tmp_path, tree, *LIGHT)
    curve, store = results["segmenter"]["rib"]["validation"], results["store"]
    assert list(curve) == ["2", "4"]  # iterations
    trained, tested = Path(store["segmenter_rib"]), Path(store["segmenter_test_rib"])
    weights = load_file(trained / "segmenter.safetensors")
    masks = {path.name: path.read_bytes() for path in (tested / "val").iterdir()}
    stamp = (tested / "val" / "im_06.png").stat().st_mtime_ns
    for folder in (trained, tested):
        (folder / "manifest.json").unlink()
    (trained / "segmenter.safetensors").unlink()
    (tested / "val" / "im_08.png").unlink()
    steps = []
    monkeypatch.setattr(SegmentationModule, "training_step", lambda *given: steps.append(given))
    assert folder_run(tmp_path, tree, *LIGHT)["segmenter"]["rib"]["validation"] == curve
    assert not steps  # the last checkpoint was that of the last step
    assert "resuming from its last checkpoint" in capsys.readouterr().out
    again = load_file(trained / "segmenter.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert {path.name: path.read_bytes() for path in (tested / "val").iterdir()} == masks
    assert (tested / "val" / "im_06.png").stat().st_mtime_ns == stamp


@pytest.mark.usefixtures("stored")
def test_best_weights_and_their_average(tmp_path, tree):
    results = folder_run(tmp_path, tree, *LIGHT, "segmenter.select=best", "segmenter.average=0.5")
    facts = json.loads((Path(results["store"]["segmenter_rib"]) / "manifest.json").read_text())["facts"]
    assert facts["selected_at"] in (2, 4)
    assert 0 <= facts["val/miou"] <= 1


@pytest.mark.usefixtures("stored")
def test_accumulation_and_the_start_from_the_classifier(tmp_path, tree):
    extra = ("segmenter.accumulate=2", "segmenter.max_steps=2")
    store = folder_run(
        tmp_path, tree, *LIGHT, *extra, "segmenter.module.lr=0", "segmenter.model.norm=frozen"
    )["store"]
    state = load_file(Path(store["segmenter_rib"]) / "segmenter.safetensors")
    classifier = load_file(Path(store["classifier"]) / "classifier.safetensors")
    shared = [value for name, value in classifier.items() if name.startswith("backbone.")]
    assert len(shared) > 20
    assert all(any(torch.equal(value, own) for own in state.values()) for value in shared)


@pytest.mark.usefixtures("stored")
def test_the_checkpoint_predicts_what_the_test_wrote(tmp_path, tree):
    store = folder_run(tmp_path, tree, *LIGHT)["store"]
    image = tree / "JPEGImages" / "im_07.jpg"
    mask = ribseg.predict(image, Path(store["segmenter_rib"]) / "segmenter.safetensors")
    written = np.array(Image.open(Path(store["segmenter_test_rib"]) / "val" / "im_07.png"))
    assert (mask == written).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["segmenter.sources=[ribs]"], "segmenter.sources"),
        (["segmenter.splits=[test]"], "segmenter.splits"),
        (["segmenter.batch_size=4", "segmenter.accumulate=3"], "does not divide"),
        (["segmenter.batch_size=2", "segmenter.accumulate=2"], "at least two crops at a time"),
        (["segmenter.max_steps=5"], "multiple of segmenter.check_every"),
        (["segmenter.select=best", "segmenter.validate=false"], "segmenter.select"),
        (["segmenter.module.class_weights=[1,2]"], "class_weights"),
        (["segmenter.model.encoder=nothing"], "nothing"),
        (["segmenter.model.encoder=resnet18"], "classifier's backbone"),
        (["segmenter.test.tile=3"], "tile"),
        (["segmenter.test.tile=64", "segmenter.test.margin=32"], "tile > 2"),
        (["segmenter.max_steps=0"], "max_steps"),
        (["run=[segmenter]"], "needs pseudo_masks"),
    ],
)
def test_settings_that_cannot_work_fail_before_the_training(tmp_path, tree, overrides, message):
    with pytest.raises(ConfigError, match=message):
        folder_run(tmp_path, tree, *LIGHT, *overrides)
    assert not list((tmp_path / "store").glob("classifier-*"))


def test_a_bound_without_all_masks_is_refused(tmp_path, tree):
    rows = (tree / "ImageSets/Segmentation/train.txt").read_text().split()
    (tree / "ImageSets/Segmentation/half.txt").write_text("\n".join(rows[:3]))
    (tree / "SegmentationClass" / f"{rows[-1]}.png").unlink()
    with pytest.raises(ConfigError, match="SegmentationClassAug"):
        folder_run(tmp_path, tree, *LIGHT, "segmenter.sources=[full]", "data.eval_splits=[half,val]")


def add_test_split(tree):
    """A list of images without labels and masks, as VOC's test split."""
    for number in range(3):
        name = f"test_{number}"
        shutil.copy(tree / "JPEGImages" / f"im_0{number}.jpg", tree / "JPEGImages" / f"{name}.jpg")
    (tree / "ImageSets/Segmentation/test.txt").write_text("test_0\ntest_1\ntest_2\n")
    return tree


def test_a_bound_with_a_broken_mask_is_refused(tmp_path, tree):
    (tree / "ImageSets/Segmentation/half.txt").write_text("im_00\nim_01\n")
    write_mask(tree / "SegmentationClass" / "im_04.png", np.ones((3, 3), np.uint8))
    extra = ("segmenter.sources=[full]", "data.eval_splits=[half,val]")
    with pytest.raises(DataError, match="im_04"):
        folder_run(tmp_path, tree, *LIGHT[:2], *extra)
    assert not list((tmp_path / "store").glob("classifier-*"))


def test_training_without_any_masks(tmp_path, tree):
    shutil.rmtree(tree / "SegmentationClass")
    extra = (
        "data.eval_splits=[]",
        "refine.maps_threshold=0.3",
        "refine.walk_threshold=0.3",
        "run=[classifier,rib,pseudo_masks,segmenter_rib,export]",
    )
    add_test_split(tree)
    results = folder_run(tmp_path, tree, "refine.variants=[none]", *extra, "export.program=false")
    assert results["export"]["images"] == 3
    assert "segmenter" not in results


CHECK = """
import io, sys, tarfile
from PIL import Image
from safetensors.torch import load_file
with tarfile.open(sys.argv[1]) as archive:
    for member in archive.getmembers():
        image = Image.open(io.BytesIO(archive.extractfile(member).read()))
        print(member.name, image.mode, *image.size, max(image.getdata()), image.getpalette()[3:6])
"""


@pytest.mark.usefixtures("stored")
def test_the_server_archive_of_a_split_without_labels(tmp_path, tree):
    add_test_split(tree)
    results = folder_run(
        tmp_path, tree, "refine.variants=[none]", "run=[classifier,rib,pseudo_masks,segmenter,export]"
    )
    archive = results["export"]["archive"]
    assert results["export"]["images"] == 3
    # An independent script opens it.
    out = subprocess.run(
        [sys.executable, "-c", CHECK, archive], capture_output=True, text=True, check=True
    ).stdout
    for number, line in enumerate(out.splitlines()):
        size = Image.open(tree / "JPEGImages" / f"test_{number}.jpg").size
        name, mode, width, height, top, *colour = line.split(maxsplit=5)
        assert name == f"results/VOC2012/Segmentation/comp6_test_cls/test_{number}.png"
        assert (mode, int(width), int(height)) == ("P", *size)
        assert int(top) <= 2
        assert colour == ["[128, 0, 0]"]
    assert out.count("\n") == 3
    program = torch.export.load(Path(archive).parent / "segmenter.pt2").module()
    images = torch.randint(0, 256, (2, 64, 33, 3), dtype=torch.uint8)
    segmenter = ribseg.load_segmenter(Path(results["store"]["segmenter_rib"]) / "segmenter.safetensors")
    from ribseg.models.program import Portable

    found, expected = program(images)[0], Portable(segmenter).eval()(images)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("stored")
def test_the_archive_of_a_tested_split_takes_the_tested_masks(tmp_path, tree):
    extra = (
        "run=[classifier,rib,pseudo_masks,segmenter,export]",
        "refine.variants=[none]",
        "export.split=val",
    )
    results = folder_run(tmp_path, tree, *extra, "export.program=false")
    assert not (Path(results["export"]["archive"]).parent / "masks").exists()
    assert results["export"]["images"] == 4


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize(
    ("override", "message"),
    [("export.split=trainval", "export.split"), ("export.source=ribs", "export.source")],
)
def test_exports_that_cannot_be(tmp_path, tree, override, message):
    with pytest.raises(ConfigError, match=message):
        folder_run(
            tmp_path,
            tree,
            "run=[classifier,rib,pseudo_masks,segmenter,export]",
            "refine.variants=[none]",
            override,
        )


@pytest.mark.usefixtures("stored")
def test_an_export_without_its_list_says_so(tmp_path, tree):
    with pytest.raises(DatasetNotFoundError, match=r"test\.txt"):
        folder_run(
            tmp_path, tree, "run=[classifier,rib,pseudo_masks,segmenter,export]", "refine.variants=[none]"
        )


def spoil_gray(folder):
    Image.fromarray(np.ones((4, 5), np.uint8)).save(folder / "b.png")


def spoil_size(folder):
    write_mask(folder / "b.png", np.ones((5, 4), np.uint8))


def spoil_label(folder):
    write_mask(folder / "b.png", np.full((4, 5), 255, np.uint8))


def spoil_palette(folder):
    write_mask(folder / "b.png", np.ones((4, 5), np.uint8), np.zeros((256, 3), np.uint8))


def spoil_bytes(folder):
    data = bytearray((folder / "b.png").read_bytes())
    data[-20] ^= 1
    (folder / "b.png").write_bytes(bytes(data))


def spoil_half(folder):
    data = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(data[: len(data) // 2])


def spoil_bits(folder):
    with Image.open(folder / "b.png") as image:
        image.save(folder / "b.png", bits=4)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_gray, "not indexed"),
        (spoil_size, "is of size"),
        (spoil_label, "label 255"),
        (spoil_palette, "palette"),
        (spoil_bytes, "broken PNG file"),
        (spoil_half, "cannot be read"),
        (spoil_bits, "not indexed with 8 bit"),
    ],
)
def test_the_check_sees_what_the_server_would_not_take(tmp_path, spoil, message):
    for name in "ab":
        write_mask(tmp_path / f"{name}.png", np.ones((4, 5), np.uint8))
    path, sizes = tmp_path / "archive.tar.gz", {"a": (4, 5), "b": (4, 5)}
    write_voc_archive(path, tmp_path, ["a", "b"], "val")
    check_voc_archive(path, sizes, "val", 2)
    spoil(tmp_path)
    write_voc_archive(path, tmp_path, ["a", "b"], "val")
    with pytest.raises(DataError, match=message):
        check_voc_archive(path, sizes, "val", 2)


def test_the_check_counts(tmp_path):
    write_mask(tmp_path / "a.png", np.ones((4, 5), np.uint8))
    path = tmp_path / "archive.tar.gz"
    write_voc_archive(path, tmp_path, ["a", "a"], "val")
    with pytest.raises(DataError, match=r"(?s)absent masks: 1.*files too many: 1"):
        check_voc_archive(path, {"a": (4, 5), "b": (4, 5)}, "val", 2)
    with pytest.raises(DataError, match="absent"):
        check_voc_archive(path, {"a": (4, 5)}, "test", 2)
    assert archive_folder("val").startswith("results/")


def test_published_recipes():
    """As docs/method.md, section 6, has them."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from quick_run import CONF

    for name, steps in (("deeplabv2_voc", 20000), ("deeplabv2_voc_30k", 30000), ("deeplabv2_coco", 100000)):
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", ["experiment=rib_voc", f"segmenter={name}"]).segmenter
        assert (cfg.max_steps, cfg.batch_size, cfg.crop_size, list(cfg.scale)) == (steps, 10, 321, [0.5, 1.5])
        assert cfg.max_steps % cfg.check_every == 0
        module, test, model = cfg.module, cfg.test, cfg.model
        assert (module.lr, module.head_lr_factor, module.head_bias_lr_factor, module.power) == (
            2.5e-4,
            10,
            20,
            0.9,
        )
        assert (module.optimizer.momentum, module.optimizer.weight_decay) == (0.9, 5e-4)
        assert (model.backbone, model.output_stride, list(model.dilations)) == (
            "resnet101.tv_in1k",
            8,
            [6, 12, 18, 24],
        )
        assert (list(test.scales), test.flip) == ([0.5, 0.75, 1.0], True)
        crf = test.crf
        assert (crf.iterations, crf.gaussian_sxy, crf.gaussian_compat) == (10, 1, 3)
        assert (crf.bilateral_sxy, crf.bilateral_srgb, crf.bilateral_compat) == (67, 3, 4)


@pytest.mark.usefixtures("stored")
def test_a_segmenter_of_another_library_in_the_chain(tmp_path, tree):
    chosen = ("name=unet", "encoder=resnet18", "pretrained=false")
    extra = ("segmenter/network@segmenter.model=smp", *(f"segmenter.model.{setting}" for setting in chosen))
    cfg = settings("rib_folder", tmp_path, f"data.root={tree}", *LIGHT, *extra)
    results = run(cfg, tmp_path / "out")
    assert 0 <= results["segmenter"]["rib"]["miou"] <= 1


@pytest.mark.usefixtures("stored")
def test_a_feature_pyramid_over_the_classifiers_backbone(tmp_path, tree):
    network = "segmenter/network@segmenter.model=fpn_lite"
    assert 0 <= folder_run(tmp_path, tree, *LIGHT, network)["segmenter"]["rib"]["miou"] <= 1
