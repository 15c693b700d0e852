"""Measures of localization: boxes, average precision of pixels, boundaries, groups, errors per class."""

from pathlib import Path

import numpy as np
import pytest
import torch
from quick_run import folder_run

from ribseg.data.io.maps import LocalizationMaps
from ribseg.functional import average_precision, boundary_counts, boundary_f, box_iou, class_errors
from ribseg.functional.boundary import boundary
from ribseg.functional.evaluation import scores_from_counts
from ribseg.metrics import (
    BoundaryF,
    GroupedScores,
    MaskConfusion,
    MaxBoxAccV2,
    PxAP,
    boxes_at_thresholds,
    by_number_of_classes,
    by_object_size,
    label_counts,
    true_boxes,
)
from ribseg.metrics.evaluation import MapEvaluator

# Measured by the program of Choe et al. on fabricated maps; see data/record_wsol.py, which made it.
RECORDED = np.load(Path(__file__).parent / "data" / "wsol.npz", allow_pickle=False)
SCALE = 16
MAPS = torch.from_numpy(RECORDED["maps"]).repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2)
MASKS = torch.from_numpy(RECORDED["masks"]).repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2)
BOXES = [torch.from_numpy(RECORDED[f"boxes_{number}"]) for number in range(len(MAPS))]


@pytest.mark.parametrize("place", range(len(RECORDED["intervals"])))
def test_boxes_and_pixels_are_those_of_the_published_program(place):
    thresholds = torch.from_numpy(np.arange(0, 1, RECORDED["intervals"][place]))
    boxes = MaxBoxAccV2(thresholds, RECORDED["limits"].tolist())
    pixels = PxAP(1, torch.cat([thresholds, torch.ones(1, dtype=torch.float64)]))
    for scores, mask, each in zip(MAPS, MASKS, BOXES, strict=True):
        boxes.update(scores[None], [each])
        pixels.update(scores[None], torch.tensor([0]), mask)
    found = boxes.compute()
    assert found["per_limit"].tolist() == pytest.approx(RECORDED["box_accuracy"][place].tolist(), abs=1e-12)
    assert float(found["mean"]) == pytest.approx(float(RECORDED["max_box_acc_v2"][place]), abs=1e-12)
    assert float(pixels.compute()) == pytest.approx(float(RECORDED["pxap"][place]), abs=1e-12)
    assert 0 < float(found["per_limit"][2]) < float(found["per_limit"][1]) < 1


def test_the_published_thresholds_are_the_default():
    boxes, pixels = MaxBoxAccV2(), PxAP(1)
    assert boxes.thresholds.tolist() == np.arange(0, 1, 0.001).tolist()
    assert pixels.thresholds.tolist() == [*np.arange(0, 1, 0.001).tolist(), 1.0]


def test_the_boxes_of_a_map_are_counted_once_per_level():
    """A cut in 8 bit decides, so thresholds that fall on one share their boxes."""
    scores = torch.tensor([[0.0, 0.5, 1.0]])
    found = boxes_at_thresholds(scores, torch.tensor([0.0, 0.001, 0.499, 0.999, 1.0]))
    assert [each.tolist() for each in found] == [
        [[1, 0, 2, 0]], [[1, 0, 2, 0]], [[2, 0, 2, 0]], [[2, 0, 2, 0]], [[0, 0, 0, 0]],
    ]  # fmt: skip
    assert boxes_at_thresholds(torch.zeros(2, 3), torch.tensor([0.5]))[0].tolist() == [[0, 0, 0, 0]]


def test_true_boxes_are_those_of_regions_without_splinters():
    target = torch.zeros(30, 40, dtype=torch.int64)
    target[2:12, 3:13] = 2
    target[20:24, 30:35] = 2  # a fifth of the large one
    target[27, 1] = 2  # a hundredth
    target[15:18, 15:18] = 255
    assert sorted(true_boxes(target, 2).tolist()) == [[3, 2, 13, 12], [30, 20, 35, 24]]
    assert true_boxes(target, 1).shape == (0, 4)
    assert true_boxes(torch.ones(4, 5, dtype=torch.int64), 1).tolist() == [[0, 0, 4, 3]]


def test_a_map_that_is_its_mask_is_right_everywhere():
    target = torch.zeros(30, 40, dtype=torch.int64)
    target[2:12, 3:13], target[20:30, 30:40] = 1, 2
    maps = torch.stack([target == 1, target == 2]).float()
    metric, pixels = MaxBoxAccV2(), PxAP(2)
    metric.update(maps, [true_boxes(target, 1), true_boxes(target, 2)])
    pixels.update(maps, torch.tensor([0, 1]), target)
    assert metric.compute()["per_limit"].tolist() == [1, 1, 1]
    assert float(pixels.compute()) == 1


def test_maps_without_a_box_and_images_without_maps_are_left_out():
    metric = MaxBoxAccV2()
    metric.update(torch.zeros(0, 4, 4), [])
    metric.update(torch.ones(1, 4, 4), [torch.zeros(0, 4, dtype=torch.int64)])
    assert int(metric.items) == 0
    assert metric.compute()["mean"].isnan()


def test_iou_of_boxes_by_hand():
    boxes = torch.tensor([[0, 0, 9, 9], [5, 5, 5, 5]])
    assert box_iou(boxes, torch.tensor([[5, 0, 14, 9]])).flatten().tolist() == [50 / 150, 0.01]
    for wrong in (torch.tensor([[3, 0, 2, 5]]), torch.tensor([0, 0, 1, 1]), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match="x0 <= x1"):
            box_iou(wrong, boxes)


def test_average_precision_is_that_of_scikit_learn():
    from sklearn.metrics import average_precision_score

    generator = torch.Generator().manual_seed(0)
    maps = (torch.rand(2, 9, 11, generator=generator) * 10).round() / 10
    target = torch.randint(0, 3, (9, 11), generator=generator)
    target[0] = 255
    metric = PxAP(2, torch.linspace(0, 1, 101))
    metric.update(maps, torch.tensor([0, 1]), target)
    valid = target != 255
    truth = torch.stack([target == 1, target == 2])[:, valid].flatten()
    expected = average_precision_score(truth, maps[:, valid].flatten())
    assert float(metric.compute()) == pytest.approx(expected)
    assert average_precision(torch.tensor([[3, 1], [0, 0]])).isnan()


def slow_boundary_counts(prediction, target, label, distance):
    """By the definition, pixel by pixel, for masks without ignored pixels."""
    edges = []
    for mask in (prediction, target):
        found = []
        for y, x in (mask == label).nonzero().tolist():
            around = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
            inside = [(a, b) for a, b in around if 0 <= a < mask.shape[0] and 0 <= b < mask.shape[1]]
            if any(mask[place] != label for place in inside):
                found.append((y, x))
        edges.append(found)

    def near(some, others):
        return sum(any((y - a) ** 2 + (x - b) ** 2 <= distance**2 for a, b in others) for y, x in some)

    return [near(*edges), len(edges[0]), near(*edges[::-1]), len(edges[1])]


@pytest.mark.parametrize("tolerance", [0.0, 0.1, 0.17])
def test_boundaries_are_those_of_the_definition(tolerance):
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        cells = torch.randint(0, 3, (2, 4, 5), generator=generator)
        prediction, target = cells.repeat_interleave(3, 1).repeat_interleave(3, 2)
        counts = boundary_counts(prediction, target, 2, tolerance)
        distance = max(1.0, tolerance * float(np.hypot(12, 15)))
        for label in (1, 2):
            expected = slow_boundary_counts(prediction, target, label, distance)
            assert counts[:, label - 1].tolist() == expected


def test_a_boundary_runs_in_the_middle_of_the_ignored_band():
    target = torch.zeros(40, 40, dtype=torch.int64)
    target[:, 20:] = 1
    target[:, 18:22] = 255
    exact = torch.zeros(40, 40, dtype=torch.int64)
    exact[:, 20:] = 1
    found = boundary_counts(exact, target, 1, tolerance=0.06)  # 3.4 pixels, half of the band is 2
    assert found[0].item() == found[1].item() == found[2].item() == found[3].item() == 40
    # An unlabelled object: a prediction inside of it, far from any label, is neither right nor wrong.
    target = torch.zeros(40, 40, dtype=torch.int64)
    target[10:30, 10:30] = 255
    inside = torch.zeros(40, 40, dtype=torch.int64)
    inside[15:25, 15:25] = 1
    assert not boundary_counts(inside, target, 1, tolerance=0.06).any()
    assert not boundary_counts(inside, torch.full((40, 40), 255), 1).any()


def test_f_is_zero_on_one_side_and_unknown_without_any():
    counts = torch.tensor([[0, 0, 2], [0, 4, 4], [0, 0, 3], [0, 0, 4]])
    found = boundary_f(counts).tolist()
    assert np.isnan(found[0])
    assert found[1:] == [0, pytest.approx(2 * 0.5 * 0.75 / 1.25)]
    assert boundary(np.ones((3, 3), bool)).sum() == 0


def random_masks(number=5, classes=3):
    generator = torch.Generator().manual_seed(3)
    for _ in range(number):
        prediction, target = torch.randint(0, classes + 1, (2, 9, 12), generator=generator)
        target[:, 0] = 255
        yield prediction, target


def updated(metric, masks, kind):
    for number, (prediction, target) in enumerate(masks):
        if kind == "masks":
            metric.update(prediction, target)
        elif kind == "groups":
            metric.update(prediction, target, number % 5)
        else:
            scores = (prediction.float() / 3).clamp(0, 1)[None]
            boxes = [true_boxes(target, 1)]
            metric.update(scores, *([boxes] if kind == "boxes" else [torch.tensor([0]), target]))
    return metric


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: MaxBoxAccV2(torch.linspace(0, 1, 11)), "boxes"),
        (lambda: PxAP(3), "pixels"),
        (lambda: BoundaryF(3), "masks"),
        (lambda: MaskConfusion(3), "masks"),
        (lambda: GroupedScores(3), "groups"),
    ],
)
def test_states_of_processes_add_up_exactly(make, kind):
    masks = list(random_masks())
    whole, states = updated(make(), masks, kind), []
    for pair in enumerate(masks):
        part = make()
        if kind == "groups":
            part.update(*pair[1], pair[0] % 5)
        else:
            updated(part, [pair[1]], kind)
        states.append(part.metric_state)
    for name, value in whole.metric_state.items():
        assert value.dtype == torch.int64
        assert torch.equal(sum(state[name] for state in states), value)


def test_groups_are_those_of_the_counts():
    metric, counts, numbers = GroupedScores(3), [], [0, 1, 2, 3, 7]
    masks = list(random_masks())
    masks[1][1][:] = 0  # no object: in no group by size
    masks[2][1][:] = 0
    masks[2][1][3, 4] = 2  # a hundredth
    for (prediction, target), number in zip(masks, numbers, strict=True):
        metric.update(prediction, target, number)
        counts.append(label_counts(prediction, target, 3))
    found = metric.compute()
    stacked = torch.stack(counts)
    assert found["by_object_size"] == by_object_size(stacked)
    assert found["by_number_of_classes"] == by_number_of_classes(stacked, numbers)
    assert [(row["size"], row["images"]) for row in found["by_object_size"]] == [("small", 1), ("large", 3)]
    rows = found["by_number_of_classes"]
    assert [(row["classes"], row["images"]) for row in rows] == [("1", 1), ("2", 1), ("3 or more", 2)]
    assert rows[0]["miou"] is None


def test_errors_and_iou_add_up_to_one():
    metric = MaskConfusion(3)
    for prediction, target in random_masks():
        metric.update(prediction, target)
    errors = metric.errors()
    torch.testing.assert_close(
        metric.compute().iou + errors.false_positive + errors.false_negative, torch.ones(4).double()
    )
    nowhere = class_errors(torch.tensor([0]), torch.tensor([0]), torch.tensor([0]))
    assert nowhere.false_positive.isnan()
    assert scores_from_counts(*torch.zeros(3, 2)).iou.isnan().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MaxBoxAccV2().update(torch.ones(1, 3, 3), []), "K tensors of boxes"),
        (lambda: MaxBoxAccV2().update(torch.full((1, 3, 3), 2.0), [torch.zeros(1, 4)]), r"in \[0, 1\]"),
        (lambda: MaxBoxAccV2().update(torch.full((1, 3, 3), torch.nan), [torch.zeros(1, 4)]), r"in \[0, 1\]"),
        (lambda: MaxBoxAccV2(limits=[0]), r"limits\[0\]"),
        (lambda: MaxBoxAccV2(thresholds=[]), "non-empty"),
        (lambda: PxAP(0), "num_classes"),
        (lambda: PxAP(1).update(torch.ones(1, 1, 1), torch.tensor([1]), torch.tensor([[0]])), r"\[0, 1\)"),
        (lambda: PxAP(1).update(torch.ones(1, 1, 1), torch.tensor([0]), torch.tensor([[0, 0]])), "resize"),
        (lambda: PxAP(1).update(torch.ones(1, 1, 1), torch.tensor([0]), torch.tensor([[3]])), "labels 0"),
        (lambda: BoundaryF(1, tolerance=-1), "tolerance"),
        (lambda: BoundaryF(0), "num_classes"),
        (lambda: BoundaryF(1).update(torch.zeros(2, 3).long(), torch.zeros(3, 2).long()), "equal shape"),
        (lambda: BoundaryF(1).update(torch.full((1, 1), 2), torch.zeros(1, 1).long()), "labels 0"),
        (lambda: GroupedScores(1).update(torch.zeros(1, 1), torch.zeros(1, 1).long(), 1), "integer"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_evaluator_measures_as_the_metrics_do():
    thresholds = torch.linspace(0, 1, 101)
    evaluator = MapEvaluator(1, thresholds, boxes=True)
    boxes, pixels = MaxBoxAccV2(thresholds), PxAP(1, thresholds)
    for scores, mask in zip(MAPS[:4], MASKS[:4], strict=True):
        maps = LocalizationMaps(torch.tensor([0]), scores[None, ::4, ::4], scores[None])
        evaluator.add(evaluator.count(maps, mask.long()))
        boxes.update(scores[None], [true_boxes(mask, 1)])
        pixels.update(scores[None], torch.tensor([0]), mask)
    summary = evaluator.summary(0.5, 10, 0)
    assert summary["pxap"] == float(pixels.compute())
    assert summary["max_box_acc_v2"]["per_limit"] == boxes.compute()["per_limit"].tolist()
    assert summary["max_box_acc_v2"]["mean"] == float(boxes.compute()["mean"])
    shares = zip(
        summary["iou_at_fixed"],
        summary["false_positive_per_class"],
        summary["false_negative_per_class"],
        strict=True,
    )
    assert [sum(each) for each in shares] == pytest.approx([1, 1])
    assert MapEvaluator(1, thresholds).box_accuracy() is None


@pytest.mark.usefixtures("undrawn")
def test_a_run_reports_them(tmp_path, tree, stored, capsys):
    run = "run=[classifier,cam,pseudo_masks,evaluate,report]", "refine.maps=cam"
    asked = ("refine.variants=[none,crf]", "evaluate.boxes=true", "evaluate.boundary=true")
    results = folder_run(tmp_path, tree, *run, *asked)
    scores = results["localization"]["cam"]["split"]["val"]
    assert 0 < scores["pxap"] <= 1
    assert len(scores["max_box_acc_v2"]["per_limit"]) == 3
    assert 0 <= scores["boundary_f"] <= 1
    assert len(scores["false_positive_per_class"]) == 3
    none, crf = (results["pseudo_masks"]["variants"][name]["val"] for name in ("none", "crf"))
    assert crf["gain"] == pytest.approx(crf["miou"] - none["miou"])
    assert crf["gain_interval"][0] <= crf["gain_interval"][1]
    assert "gain" not in none
    assert sum(group["images"] for group in none["by_object_size"]) == 4
    # The cut maps are the masks of the variant none at its threshold; there is one threshold for both splits.
    assert {"boundary_f", "by_number_of_classes"} <= set(none)
    page, said = (tmp_path / "out" / "report.html").read_text(), capsys.readouterr().out
    for title in ("Localization on val", "Errors per class, val", "mIoU by object size"):
        assert title in page
    for column in ("PxAP", "MaxBoxAccV2", "boundary F", "gain"):
        assert column in page
        assert column in said
    plain = folder_run(tmp_path, tree, *run, "refine.variants=[none]")
    scores = plain["localization"]["cam"]["split"]["val"]
    assert scores["max_box_acc_v2"] is None
    assert "boundary_f" not in scores
    assert "gain" not in plain["pseudo_masks"]["variants"]["none"]["val"]
