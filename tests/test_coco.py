"""COCO: from instances to semantic masks, labels and lists."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from quick_run import QUICK, settings

from ribseg.data.coco import prepare as coco
from ribseg.data.coco.instances import ImageRecord, Instance, Instances, read_instances
from ribseg.data.coco.masks import semantic_mask
from ribseg.data.coco.prepare import Policy, check_counts, prepare_coco
from ribseg.data.io.masks import read_mask
from ribseg.errors import ConfigError, DataError, DatasetNotFoundError, RibsegError
from ribseg.modules.data_module import WSSSDataModule
from ribseg.pipeline.run import run

codes = pytest.importorskip("pycocotools.mask", reason="pip install ribseg[coco]")
SPLITS = ("train2014", "val2014")
# Ids with gaps and out of order, as COCO's; a name with a space.
CATEGORIES = [{"id": 90, "name": "traffic light"}, {"id": 1, "name": "person"}, {"id": 13, "name": "bus"}]


def square(left, top, side):
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def annotation(number, image, category, segmentation, crowd=0):
    return {
        "id": number, "image_id": image, "category_id": category, "segmentation": segmentation,
        "iscrowd": crowd, "area": 1.0,
    }  # fmt: skip


def crowd_code(height, width, rows):
    """A run-length code of the lowest rows, uncompressed as COCO has crowds."""
    return {"size": [height, width], "counts": [height - rows, rows] * width}


def split_content(split):
    """Six images: bus; bus under person; crowd alone; nothing; person and light; bus."""
    images = [
        {"id": 100 + n, "file_name": f"COCO_{split}_{n:012d}.jpg", "height": 40, "width": 48 + n}
        for n in range(6)
    ]
    objects = [
        annotation(1, 100, 13, [square(4, 4, 24)]),
        annotation(2, 101, 1, [square(10, 10, 8)]),
        annotation(3, 101, 13, [square(4, 4, 24)]),
        annotation(4, 102, 1, crowd_code(40, 50, 10), 1),
        annotation(5, 104, 1, [square(2, 2, 12), square(20, 2, 12)]),
        annotation(6, 104, 90, [square(2, 22, 12)]),
        annotation(7, 105, 13, [square(8, 8, 20)]),
    ]
    return {"images": images, "annotations": objects, "categories": CATEGORIES}


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split in SPLITS:
        (root / split).mkdir()
        content = split_content(split)
        for image in content["images"]:
            noise = generator.integers(0, 255, (image["height"], image["width"], 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / split / image["file_name"])
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def prepared(tree, tmp_path, **policy):
    return prepare_coco(tree, tmp_path / "target", progress=False, workers=1, **policy)


def test_ids_names_labels_and_lists(tree, tmp_path):
    data = WSSSDataModule(**prepared(tree, tmp_path), train_split=SPLITS[0], eval_splits=SPLITS)
    assert data.classes == ("person", "bus", "traffic_light")
    assert len(data.train) == 6
    labels = [np.flatnonzero(row).tolist() for row in data.train.labels]
    assert labels == [[1], [0, 1], [0], [], [0, 2], [1]]
    assert data.train.image("COCO_train2014_000000000002").shape == (40, 50, 3)
    reports = data.check(full=True, masks=True)
    assert reports["val2014"].masks == 6
    assert reports["val2014"].unlabelled == ("COCO_val2014_000000000003",)


def test_masks_equal_an_independent_rendering(tree, tmp_path):
    prepared(tree, tmp_path)
    mask = read_mask(tmp_path / "target" / "SegmentationClass" / "COCO_train2014_000000000004.png")
    picture = Image.new("L", (52, 40))
    draw = ImageDraw.Draw(picture)
    for left, top, label in ((2, 2, 1), (20, 2, 1), (2, 22, 3)):
        draw.rectangle([left, top, left + 11, top + 11], fill=label)
    assert (mask == np.asarray(picture)).mean() >= 0.99
    # The bus comes last in the file and hides the person.
    hidden = read_mask(tmp_path / "target" / "SegmentationClass" / "COCO_train2014_000000000001.png")
    assert set(np.unique(hidden)) == {0, 2}


@pytest.mark.parametrize(
    ("policy", "crowd_ids", "listed"),
    [
        ({"crowd": "include"}, {0, 1}, 6),
        ({"crowd": "exclude"}, {0}, 6),
        ({"crowd": "ignore255"}, {0, 255}, 6),
        ({"crowd": "label_only"}, {0}, 6),
        ({"crowd": "include", "unannotated": "drop"}, {0, 1}, 5),
        ({"crowd": "exclude", "unannotated": "drop"}, None, 4),
        ({"crowd": "ignore255", "unannotated": "drop"}, {0, 255}, 5),
        ({"crowd": "label_only", "unannotated": "drop"}, {0}, 5),
    ],
)
def test_policies(tree, tmp_path, policy, crowd_ids, listed):
    arguments = prepared(tree, tmp_path, overlap="smallest_on_top", **policy)
    ids = (tmp_path / "target/ImageSets/Segmentation/train2014.txt").read_text().split()
    assert len(ids) == listed
    path = tmp_path / "target/SegmentationClass/COCO_train2014_000000000002.png"
    assert (set(np.unique(read_mask(path))) if path.exists() else None) == crowd_ids
    on_top = read_mask(tmp_path / "target/SegmentationClass/COCO_train2014_000000000001.png")
    assert set(np.unique(on_top)) == {0, 1, 2}
    manifest = json.loads((tmp_path / "target/coco.json").read_text())
    assert manifest["policy"] == {"overlap": "smallest_on_top", "unannotated": "keep"} | policy
    assert manifest["counts"]["val2014"]["images"] == listed
    WSSSDataModule(**arguments, train_split=SPLITS[0], eval_splits=SPLITS).setup()


def masked(target, number):
    return set(np.unique(read_mask(target / f"SegmentationClass/COCO_train2014_{number:012d}.png")))


@pytest.mark.parametrize(
    ("preset", "listed", "crowd_alone", "two_objects"),
    [("rib", 6, {0, 1}, {0, 2}), ("recam", 6, {0}, {0, 2}), ("coco2voc", 5, {0, 1}, {0, 1, 2})],
)
def test_presets_do_what_the_code_does_that_they_are_named_after(
    tree, tmp_path, preset, listed, crowd_alone, two_objects
):
    data = WSSSDataModule(
        **prepared(tree, tmp_path, policy=preset), train_split=SPLITS[0], eval_splits=SPLITS
    )
    assert len(data.train) == listed
    target = tmp_path / "target"
    assert (masked(target, 2), masked(target, 1)) == (crowd_alone, two_objects)
    assert data.train.labels[data.train.index("COCO_train2014_000000000002")].tolist() == [True, False, False]
    assert json.loads((target / "coco.json").read_text())["preset"] == preset


def test_settings_come_before_the_preset_and_are_named(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facts = prepare_coco(tree, policy="coco2voc", overlap="last", progress=False, workers=1).facts
    assert facts == {
        "policy": "coco2voc with overlap=last", "crowd": "include", "overlap": "last", "unannotated": "drop",
        "target": "outputs/coco/crowd-include-overlap-last-unannotated-drop", "objects": 14, "crowds": 2,
    }  # fmt: skip
    # The same masks under another name: nothing is made again.
    again = prepare_coco(tree, policy="rib", unannotated="drop", progress=False)
    assert again.facts == facts | {"policy": "rib with unannotated=drop"}
    with pytest.raises(ConfigError, match=r"policy: expected rib \| recam \| coco2voc, got 'irn'"):
        prepare_coco(tree, policy="irn")


def test_single_objects_lie_on_top_of_an_ignored_crowd():
    record = ImageRecord("a", 4, 4)
    whole = {"size": [4, 4], "counts": [0, 16]}
    objects = [Instance(1, False, [[0, 0, 2, 0, 2, 2, 0, 2]]), Instance(2, True, whole)]
    mask = semantic_mask(record, objects, "ignore255")
    assert (mask[:2, :2] == 1).all()
    assert (mask == 255).sum() == 12


def test_compressed_codes_are_read(tmp_path):
    region = np.zeros((40, 50), np.uint8, order="F")
    region[5:30, 7:20] = 1
    region[33:35, 40:] = 1
    code = codes.encode(region)
    code = {"size": [40, 50], "counts": code["counts"].decode()}
    content = split_content("x") | {"annotations": [annotation(1, 102, 1, code)]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    instances = read_instances(tmp_path / "a.json")
    assert (semantic_mask(instances.images[2], instances.objects[2]) == region).all()


def test_a_second_call_does_nothing_and_a_killed_one_goes_on(tree, tmp_path):
    prepared(tree, tmp_path)
    masks = sorted((tmp_path / "target" / "SegmentationClass").iterdir())
    times = [path.stat().st_mtime_ns for path in masks]
    prepared(tree, tmp_path)
    manifest = tmp_path / "target/coco.json"
    unfinished = json.loads(manifest.read_text())
    del unfinished["counts"]
    manifest.write_text(json.dumps(unfinished))
    before = masks[3].read_bytes()
    masks[3].unlink()
    prepared(tree, tmp_path)
    assert masks[3].read_bytes() == before
    assert [path.stat().st_mtime_ns for path in masks[:3]] == times[:3]
    masks[3].unlink()
    prepared(tree, tmp_path)
    assert masks[3].read_bytes() == before  # also after it was finished once
    with pytest.raises(ConfigError, match="made from other annotations, or with the policy"):
        prepared(tree, tmp_path, crowd="exclude")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    with pytest.raises(ConfigError, match="something else"):
        prepare_coco(tree, tmp_path / "full", progress=False)
    with pytest.raises(ConfigError, match=r"is a file.*prepare\.target=DIR"):
        prepare_coco(tree, tmp_path / "full" / "a.txt", progress=False)
    with pytest.raises(ConfigError, match=r"list of names, got 'val2014'"):
        prepare_coco(tree, tmp_path / "other", splits="val2014", progress=False)


def test_two_processes_draw_the_same(tree, tmp_path, monkeypatch):
    prepared(tree, tmp_path)
    monkeypatch.setattr(coco, "FEW", 1)
    prepare_coco(tree, tmp_path / "two", progress=False, workers=2)
    for path in (tmp_path / "target" / "SegmentationClass").iterdir():
        assert (tmp_path / "two" / "SegmentationClass" / path.name).read_bytes() == path.read_bytes()


BROKEN = {
    "unknown category_id": {"category_id": 12},
    "unknown image_id": {"image_id": "100"},
    "no polygons": {"segmentation": [[0, 0, 1, 1]]},
    "no polygons inside": {"segmentation": [[0, 0, 1e9, 0, 1e9, 1e9]]},
    "no polygons inside the": {"segmentation": [[0, 0, float("nan"), 0, 1, 1]]},
    "no run-length": {"segmentation": {"size": [40, 48], "counts": [0, 2**31]}},
    "no run-length code": {"segmentation": {"size": [40, 48], "counts": "~~~~"}},
    "no run-length code of": {"segmentation": {"size": [4, 4], "counts": [16]}},
    "iscrowd": {"iscrowd": 7},
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_annotations_are_listed(tmp_path, message):
    content = split_content("x")
    content["annotations"][0] |= BROKEN[message]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"{message}[\s\S]*annotation 1"):
        read_instances(tmp_path / "a.json")


def test_broken_files_are_named(tree, tmp_path):
    path = tree / "annotations" / "instances_val2014.json"
    text = path.read_text()
    for broken in (
        text[: len(text) // 2],
        "[]",
        "{}",
        "\x00",
        "[" * 100_000,
        text.replace('"height"', '"h"'),
    ):
        path.write_text(broken)
        with pytest.raises(DataError, match=r"instances_val2014\.json"):
            prepared(tree, tmp_path)
    path.unlink()
    with pytest.raises(DatasetNotFoundError, match=r"annotations/instances_val2014\.json"):
        prepared(tree, tmp_path)
    with pytest.raises(ConfigError, match=r"crowd: expected exclude \| include \| ignore255"):
        Policy(crowd="some")


def test_random_damage_gives_a_named_error_or_masks(tree, tmp_path):
    """Flipped bytes in the annotations: never a crash, never another exception."""
    path = tree / "annotations" / "instances_train2014.json"
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for number in range(200):
        damaged = bytearray(whole)
        damaged[int(generator.integers(len(whole)))] = int(generator.integers(32, 127))
        path.write_bytes(bytes(damaged))
        try:
            prepare_coco(tree, tmp_path / f"t{number}", progress=False, workers=1)
        except RibsegError:
            refused += 1
    assert 50 < refused < 200


def test_objects_that_are_all_crowds(tree, tmp_path):
    """As Datumaro 1.13 writes every mask."""
    for split in SPLITS:
        path = tree / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        for each in content["annotations"]:
            each["iscrowd"] = 1
        path.write_text(json.dumps(content))
    for crowd in ("exclude", "ignore255", "label_only"):
        with pytest.raises(DataError, match=r"all 7 objects in .* are crowds.*prepare\.crowd=include"):
            prepared(tree, tmp_path / crowd, crowd=crowd)
    assert prepared(tree, tmp_path).facts["crowds"] == 14


def test_official_counts_are_asserted():
    records = [ImageRecord(str(n), 1, 1) for n in range(40_504)]
    some = [[Instance(1, False, [])]] * 40_137 + [[]] * 367
    check_counts("val2014", Instances(["a"], records, some))
    with pytest.raises(DataError, match="40136 of them have instances, not 40137"):
        check_counts("val2014", Instances(["a"], records, [[], *some[1:]]))


@pytest.mark.usefixtures("undrawn")
def test_the_experiment_runs_dry(tree, tmp_path, capsys):
    overrides = [f"data.root={tree}", f"prepare.target={tmp_path / 'target'}", "prepare.workers=1"]
    whole = "run=[classifier,cam,rib,refine,evaluate,report]"
    cfg = settings("rib_coco", tmp_path, *overrides, whole, "prepare.policy=recam")
    results = run(cfg, tmp_path / "out")
    for part, value in {
        "policy": "recam",
        "crowd": "label_only",
        "overlap": "last",
        "unannotated": "keep",
    }.items():
        assert results["prepared"][part] == value
    line = "the policy recam (crowd=label_only, overlap=last, unannotated=keep); 2 of 14 objects are crowds"
    assert line in capsys.readouterr().out
    assert line in (tmp_path / "out" / "report.html").read_text()
    run(
        settings("rib_coco", tmp_path, *overrides, "run=[check_data]", "prepare.policy=recam"),
        tmp_path / "look",
    )
    assert (
        json.loads((tmp_path / "look" / "check_data.json").read_text())["prepared"]["crowd"] == "label_only"
    )
    assert line in capsys.readouterr().out
    idle = (*overrides, whole, "prepare.policy=recam", "data.labels=mask")
    with pytest.raises(ConfigError, match=r"data\.labels=mask would have no effect"):
        run(settings("rib_coco", tmp_path, *idle), tmp_path / "idle")
    assert set(results["localization"]["rib"]["split"]) == set(SPLITS)
    assert results["adaptation"]["without_class"] == 2
    masks = Path(results["store"]["pseudo_masks"]) / "random_walk"
    # COCO's images without any label get a mask of background.
    assert not read_mask(masks / "COCO_train2014_000000000003.png").any()


def test_published_settings(tmp_path):
    replaced = {override.split("=")[0] for override in QUICK}
    cfg = settings("rib_coco", tmp_path, "rib.margin=1000", "data.root=x")
    assert (cfg.rib.lr, cfg.rib.references, cfg.pooling.threshold) == (5e-6, 15, 0.5)
    assert "rib.margin" in replaced
    assert cfg.refine.walk_threshold == 0.22
    assert cfg.prepare.policy == "rib"
