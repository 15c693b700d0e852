"""The parts of a report: the order of its pictures, the answer in sentences, scores by object size."""

import numpy as np
import pytest
import torch
from PIL import Image
from quick_run import folder_run

from ribseg.checks import SettingError
from ribseg.errors import ConfigError, RibsegError
from ribseg.metrics.evaluation import by_object_size
from ribseg.pipeline.report.answer import answers
from ribseg.pipeline.report.gallery import fitting, picture_order, take_turns
from ribseg.pipeline.report.records import records_of, select, series, splits_of
from ribseg.pipeline.report.settings import check_published
from ribseg.pipeline.report.table import Column, Declared, Sortable, TableData
from ribseg.pipeline.report.tables import DETAILS, file_tables, shown_tables


def row(split, **scores):
    return {"split": split, "scores": scores}


def test_pictures_show_losses_and_gains_and_low_scores_first():
    rng = np.random.default_rng(0)
    rows = [row("train", cam=float(cam), rib=float(rib)) for cam, rib in rng.random((60, 2))]
    order = picture_order(rows, ["cam", "rib"], "cam")
    assert sorted(order) == list(range(60))
    gains = [each["scores"]["rib"] - each["scores"]["cam"] for each in rows]
    lowest = [min(range(60), key=lambda n: rows[n]["scores"][name]) for name in ("cam", "rib")]
    assert {int(np.argmin(gains)), int(np.argmax(gains)), *lowest, 0} <= set(order[:5])


def test_splits_take_turns_in_the_pictures():
    rows = [row("train", cam=n / 100) for n in range(20)] + [row("val", cam=n / 100) for n in range(4)]
    order = picture_order(rows, ["cam"], "cam")
    assert sum(number >= 20 for number in order[:8]) == 4
    assert len(set(order)) == 24


def test_images_without_scores_are_evenly_spaced():
    rows = [row("train", cam=None) for _ in range(100)]
    order = picture_order(rows, ["cam"], None)
    assert order[:10] == list(range(0, 100, 10))
    assert sorted(order) == list(range(100))


def test_the_report_opens_with_pictures(tmp_path, tree):
    folder_run(tmp_path, tree, "run=[classifier,cam,rib,evaluate,report]", "report.examples=2")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index('class="opening"') < page.index("<table")
    assert Image.open(tmp_path / "out" / "grid.png").height > 100


def test_turns_and_limits():
    assert take_turns([1, 2], [], [2, 3, 4]) == [1, 2, 3, 4]
    assert take_turns() == []
    assert list(fitting(5, ["ab", "cde", "f"])) == ["ab", "cde"]
    assert list(fitting(1, ["ab", "c"])) == []  # in order, without picking smaller ones


def label_counts(masks):
    """(N, 3, 2) counts of a perfect prediction of masks with some pixels of one class out of 100."""
    true = torch.tensor([[100 - pixels, pixels] for pixels in masks])
    return torch.stack([true, true, true], dim=1)


def test_object_size_is_the_share_of_the_scored_pixels():
    groups = by_object_size(label_counts([0, 1, 4, 60, 100]))
    assert sum(group["images"] for group in groups) == 4  # one image has no object
    assert [group["size"] for group in groups] == ["small", "large"]
    for group in groups:
        assert group["miou"] == 1
        assert group["above"] < group["up_to"]


def localization(gain, bounds, control=False):
    base = {"best_miou": 0.4, "miou_at_fixed": 0.39, "images": 245}
    rib = base | {"miou_at_fixed": 0.39 + gain, "gain_over_cam": gain, "gain_interval": bounds}
    return {
        "cam": {"label": "CAM", "control": False, "split": {"val": base}},
        "rib": {"label": "RIB", "control": control, "split": {"val": rib}},
    }


def answered(gain, bounds, control=False):
    return answers(records_of({"localization": localization(gain, bounds, control)}))


def test_the_answer_says_whether_a_difference_is_shown():
    (shown,) = answered(0.02, (0.01, 0.03))
    assert shown == "RIB reaches 41.0 mIoU on val (245 images), CAM 39.0: +2.0, 95 % interval [+1.0, +3.0]."
    (open_,) = answered(0.02, (-0.01, 0.05))
    assert open_.endswith("95 % interval [-1.0, +5.0]. The interval includes 0, so no difference is shown.")
    (worse,) = answered(-0.02, (-0.03, -0.01))
    assert worse.endswith("-2.0, 95 % interval [-3.0, -1.0].")


def test_the_answer_without_thresholds_controls_or_anything():
    found = localization(0.02, None)
    for values in found.values():
        values["split"]["val"]["miou_at_fixed"] = None
    assert "each at its best threshold" in answers(records_of({"localization": found}))[0]
    alone, controls = answered(0.02, (0, 0.1), control=True)
    assert alone == "mIoU on val (245 images): CAM 39.0."
    assert controls.startswith("Controls: RIB 41.0 (+2.0).")
    assert answers(records_of({})) == []


def test_published_values_stand_in_the_table(tmp_path, tree):
    stages = "run=[classifier,cam,rib,evaluate]"
    results = folder_run(
        tmp_path, tree, stages, "+report.published={train:{cam:0.495,rib:0.565},test:{cam:0.1}}"
    )
    train, val = shown_tables(records_of(results))[:2]
    assert train.columns[-1] == "published best"
    assert [cells[-1] for cells in train.rows[:3]] == ["49.5", "56.5", "-"]
    assert "published best" not in val.columns
    plain = folder_run(tmp_path, tree, stages)
    assert plain["store"] == results["store"]  # nothing is computed again


@pytest.mark.parametrize("value", [3, {"train": 0.5}, {"train": {"cam": 56.5}}, {"train": {"cam": None}}])
def test_published_values_are_fractions(value):
    with pytest.raises(SettingError, match=r"report\.published"):
        check_published("report.published", value)


def test_sortable_cells_are_text():
    cell = Sortable("1:15 min", 75.0)
    assert cell == "1:15 min"
    assert TableData("t", ["time"], [[cell]]).rows[0][0].value == 75


def test_the_table_of_costs_has_seconds_and_peaks_of_each_method():
    methods = {
        "cam": {"label": "CAM", "images": 10, "seconds_per_image": 0.25, "peak_gib": {"memory": 1.5}},
        "rib": {
            "label": "RIB",
            "images": 10,
            "seconds_per_image": 12.0,
            "peak_gib": {"memory": 2.25, "GPU memory": 7.0},
        },
        "old": {"label": "of an earlier version", "images": 3, "seconds_per_image": 1.0, "peak_gib": {}},
    }
    (table,) = shown_tables(records_of({"methods": methods}))
    assert list(table.columns) == ["maps", "images", "s an image", "memory,\nGiB", "GPU memory,\nGiB"]
    assert [list(row) for row in table.rows] == [
        ["CAM", "10", "0.25", "1.50", "-"],
        ["RIB", "10", "12", "2.25", "7.00"],
        ["of an earlier version", "3", "1", "-", "-"],
    ]
    assert table.rows[1][2].value == 12.0


NEWER = {
    *("pxap", "max_box_acc_v2", "false_positive_per_class", "false_negative_per_class", "peak_gib"),
    *("gain", "gain_interval", "by_object_size", "by_number_of_classes"),
}


def without_newer(node, dropped=NEWER):
    """Results as an earlier version wrote them."""
    if isinstance(node, dict):
        return {key: without_newer(value, dropped) for key, value in node.items() if key not in dropped}
    return [without_newer(value, dropped) for value in node] if isinstance(node, list) else node


def test_results_of_an_earlier_version_are_shown_without_what_they_lack(tmp_path, tree):
    run = "run=[classifier,cam,rib,pseudo_masks,evaluate]"
    results = folder_run(tmp_path, tree, run, "rib.lr=1e-3", "refine.variants=[none,crf]")
    now, then = records_of(results), records_of(without_newer(results))
    maps = ["Localization maps on train, 6 images", "Localization maps on val, 4 images"]
    others = ["What the maps cost", "Pseudo masks, percent"]
    assert [table.title for table in shown_tables(now)] == [*maps, "Localization on val, percent", *others]
    assert [table.title for table in shown_tables(then)] == [*maps, *others]
    assert len(shown_tables(now)[3].columns) == 4
    assert len(shown_tables(then)[2].columns) == 3
    assert "gain" in shown_tables(now)[-1].columns
    assert "gain" not in shown_tables(then)[-1].columns
    titles = [table.title for table in shown_tables(then, DETAILS)]
    assert [title.partition(",")[0] for title in titles] == [
        "IoU per class", "Coverage of objects by distance from CAM's peak", "IoU per class",
    ]  # fmt: skip
    assert len(shown_tables(now, DETAILS)) == 9


def test_results_are_read_as_flat_records():
    scores = {
        "images": 4,
        "best_miou": 0.5,
        "best_threshold": 0.3,
        "miou_at_fixed": 0.4,
        "fixed_threshold": 0.6,
        "interval_at_fixed": [0.3, 0.5],
        "iou": [0.9, 0.1],
        "iou_at_fixed": [0.8, None],
        "by_object_size": [{"size": "small", "up_to": 0.1, "images": 3, "miou": 0.2}],
    }
    results = {"localization": {"rib": {"label": "RIB", "control": True, "split": {"val": scores}}}}
    records = records_of(results, ["cat"])
    (fixed,) = select(records, "localization", "miou_at_fixed")
    assert (fixed.name, fixed.label, fixed.split, fixed.number) == ("RIB *", "RIB", "val", 4)
    assert (fixed.value, fixed.threshold, fixed.interval) == (0.4, 0.6, [0.3, 0.5])
    classes = select(records, "localization", "class_iou")  # at the fixed threshold, as there is one
    assert [(one.place, one.value) for one in classes] == [("background", 0.8), ("cat", None)]
    assert series(classes) == {"RIB": [0.8, None]}
    (group,) = select(records, "localization", "by_object_size")
    assert (group.place, group.threshold, group.number, group.value) == ("small", 0.1, 3, 0.2)
    assert splits_of(records, "localization") == ["val"]
    assert select(records, "segmenter") == []


def test_a_declared_table_has_texts_to_be_shown_and_numbers_in_its_file():
    methods = {
        "cam": {"label": "CAM", "images": 10, "seconds_per_image": 0.2512, "peak_gib": {"memory": 1.5}}
    }
    records = records_of({"methods": methods})
    table = file_tables(records)["costs"]
    assert list(table.columns) == ["maps", "images", "seconds_per_image", "memory_gib"]
    assert table.rows == [["CAM", 10, 0.2512, 1.5]]
    assert shown_tables(records)[0].rows == [["CAM", "10", "0.251", "1.50"]]


def own_table(part="localization"):
    """A table of a user, as docs/extending.md has it."""
    columns = (Column("maps", text="label"), Column("missed, percent", "false_negative"))
    return Declared(part, columns, "What {split} misses", file="missed/{split}")


def test_a_table_of_a_users_own_is_shown_and_written_like_ours(tmp_path, tree, capsys):
    mine = f"+report.tables.missed._target_={__name__}.own_table"
    results = folder_run(tmp_path, tree, "run=[classifier,cam,evaluate,report]", mine)
    assert "What val misses" in capsys.readouterr().out
    assert "What val misses" in (tmp_path / "out" / "report.html").read_text()
    lines = (tmp_path / "out" / "tables" / "missed_val.csv").read_text().splitlines()
    assert lines[0] == 'maps,"missed, percent"'
    missed = results["localization"]["cam"]["split"]["val"]["false_negative_per_class"]
    known = [value for value in missed[1:] if value is not None]
    assert float(lines[1].split(",")[1]) == pytest.approx(sum(known) / len(known))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("._target_=ribseg.GAP", r"report\.tables\.mine: expected .*Declared, got GAP"),
        (f"={{_target_: {__name__}.own_table, part: masks}}", r"report\.tables\.mine\.part: .*localization"),
    ],
)
def test_what_is_no_table_is_refused_before_the_first_stage(tmp_path, tree, setting, message):
    with pytest.raises(ConfigError, match=message):
        folder_run(tmp_path, tree, "run=[classifier,cam,evaluate,report]", f"+report.tables.mine{setting}")
    assert not list((tmp_path / "store").glob("classifier-*"))


def test_one_declaration_is_a_table_to_be_shown_and_a_file():
    scores = {"miou": 0.25, "precision": 0.5, "images": 3}
    records = records_of({"segmenter": {"rib": {"label": "RIB", "split": {"val": scores, "test": scores}}}})
    columns = (Column("of", text="label"), Column("mIoU", "miou"), Column("boundary F", "boundary_f"))
    mine = Declared("segmenter", columns, "Mine on {split}, {number}", splits="each", file="mine/{split}")
    shown, _ = mine.tables(records)
    assert (shown.title, shown.columns) == ("Mine on val, 3", ["of", "mIoU", "boundary F"])
    assert shown.rows == [["RIB", "25.0", "-"]]
    assert {name: table.rows for name, table in mine.files(records)} == {
        "mine/val": [["RIB", 0.25, None]],
        "mine/test": [["RIB", 0.25, None]],
    }


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Declared("localization", (Column("m", "miou"),), splits="every"), "splits: expected each"),
        (lambda: Declared("localization", (Column("m", "miou"), Column("x", text="labell"))), "labell"),
        (lambda: Declared("localization", (Column("m", "miou"),), "T {spli}"), "KeyError: 'spli'"),
        (lambda: Declared("localization", ("maps", "miou")), "no attribute 'measure'"),
        (lambda: Declared("localization", (Column("maps", text="label"),)), "columns with a measure"),
        (lambda: Declared("localization", (Column("m", "miou"),), file="costs"), "file: .* got 'costs'"),
    ],
)
def test_a_table_that_cannot_be_made_is_refused(tmp_path, tree, monkeypatch, made, message):
    monkeypatch.setattr(f"{__name__}.own_table", made)
    with pytest.raises(RibsegError, match=rf"report\.tables\.mine.*{message}"):
        folder_run(tmp_path, tree, "run=[classifier]", f"+report.tables.mine._target_={__name__}.own_table")


def test_a_table_without_numbers_is_said(tmp_path, tree, capsys, monkeypatch):
    monkeypatch.setattr(
        f"{__name__}.own_table", lambda: Declared("localization", (Column("m", "miuo"),), "T")
    )
    mine = f"+report.tables.mine._target_={__name__}.own_table"
    folder_run(tmp_path, tree, "run=[classifier,cam,evaluate]", mine)
    assert "report.tables.mine is empty; its part has best_miou" in " ".join(capsys.readouterr().out.split())
