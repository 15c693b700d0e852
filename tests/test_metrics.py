"""Metrics against single evaluations, and the controls."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

import ribseg
from ribseg.data.io.maps import LocalizationMaps
from ribseg.functional import argmax_labels
from ribseg.functional.evaluation import distance_tenths
from ribseg.methods.controls import centre_prior, relabel, whole_image, wrong_labels
from ribseg.metrics import MaskConfusion, bootstrap_miou, interval, label_counts, pooled_scores
from ribseg.metrics.evaluation import MapEvaluator, full_size
from ribseg.types import Adaptation, ViewMaps


def images(number=6, classes=4, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    for index in range(number):
        present = torch.randperm(classes, generator=generator)[: index % 3].sort().values
        # Coarse values, so that many pixels lie exactly on a threshold.
        maps = (torch.rand(len(present), 9, 11, generator=generator) * 10).round() / 10
        target = torch.randint(0, classes + 1, (9, 11), generator=generator)
        target[0] = 255
        yield maps.to(dtype), present, target


def one_by_one(thresholds, classes=4, **kwargs):
    """MIoU of each threshold on its own, by torchmetrics' confusion matrix."""
    result = []
    for threshold in thresholds.tolist():
        metric = MulticlassJaccardIndex(classes + 1, average="none", ignore_index=255)
        for maps, present, target in images(classes=classes, **kwargs):
            metric.update(argmax_labels(maps.float(), present, threshold)[None], target[None])
        result.append(metric.compute())
    return torch.stack(result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sweep_equals_single_evaluations(dtype):
    thresholds = torch.linspace(0, 1, 11)
    sweep = ribseg.ThresholdSweep(4, thresholds)
    for maps, present, target in images(dtype=dtype):
        sweep.update(maps, present, target)
    result = sweep.compute()
    torch.testing.assert_close(result["iou"].float(), one_by_one(thresholds, dtype=dtype))
    assert result["best_miou"] == result["miou"].max()
    assert result["best_threshold"] == thresholds[result["miou"].argmax()]


def test_sweep_has_the_digits_of_single_evaluations():
    thresholds = torch.linspace(0, 1, 11)
    sweep = ribseg.ThresholdSweep(12, thresholds)
    for image in images(classes=12):
        sweep.update(*image)
    result = sweep.compute()
    for number, threshold in enumerate(thresholds.tolist()):
        single = MaskConfusion(12)
        for maps, present, target in images(classes=12):
            single.update(argmax_labels(maps, present, threshold), target)
        for name in ("miou", "precision", "recall"):
            assert torch.equal(result[name][number], getattr(single.compute(), name))


def test_absent_class_is_left_out_of_the_mean():
    sweep = ribseg.ThresholdSweep(3, torch.tensor([0.5]))
    sweep.update(torch.tensor([[[0.9, 0.1]]]), torch.tensor([0]), torch.tensor([[1, 0]]))
    result = sweep.compute()
    assert result["miou"].item() == 1.0
    assert result["iou"][0].isnan().tolist() == [False, False, True, True]


def test_precision_and_recall():
    sweep = ribseg.ThresholdSweep(1, torch.tensor([0.5, 1.0]))
    sweep.update(torch.tensor([[[0.9, 0.9, 0.9, 0.1]]]), torch.tensor([0]), torch.tensor([[1, 0, 1, 1]]))
    result = sweep.compute()
    torch.testing.assert_close(result["precision"], torch.tensor([2 / 3, 0.0], dtype=torch.float64))
    torch.testing.assert_close(result["recall"], torch.tensor([2 / 3, 0.0], dtype=torch.float64))


def test_merging_states_equals_one_pass():
    whole, halves = ribseg.ThresholdSweep(4), [ribseg.ThresholdSweep(4) for _ in range(2)]
    for index, image in enumerate(images()):
        whole.update(*image)
        halves[index % 2].update(*image)
    halves[0].histogram += halves[1].histogram
    assert torch.equal(whole.compute()["miou"], halves[0].compute()["miou"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, c, t: (m, c, t[:-1]), "resize the maps"),
        (lambda m, c, t: (m, c + 9, t), r"\[0, 4\)"),
        (lambda m, c, t: (m, c, t + 6), "another data set"),
        (lambda m, c, t: (m * float("nan"), c, t), "finite"),
        (lambda m, c, t: (m, c, t.float()), "integer"),
    ],
)
def test_bad_input_is_named(change, message):
    image = list(images())[2]
    with pytest.raises(ValueError, match=message):
        ribseg.ThresholdSweep(4).update(*change(*image))


def test_counts_of_the_evaluator_equal_direct_counts():
    thresholds = torch.linspace(0, 1, 11)
    evaluator, direct = MapEvaluator(4, thresholds), []
    for maps, present, target in images():
        evaluator.add(evaluator.count(LocalizationMaps(present, maps, maps), target))
        direct.append(label_counts(argmax_labels(maps, present, float(thresholds[3])), target, 4))
    assert torch.equal(evaluator.counts(float(thresholds[3])), torch.stack(direct))
    summary = evaluator.summary(round(float(thresholds[3]), 6), 50, 0)
    assert summary["miou_at_fixed"] == pytest.approx(float(evaluator.sweep()["miou"][3]))
    assert summary["images"] == 6
    low, high = summary["interval_at_fixed"]
    assert low <= summary["miou_at_fixed"] <= high


def test_coverage_goes_from_the_peak_outwards():
    """A map that falls from its peak covers the near tenths of the object and leaves the far ones."""
    line = torch.linspace(1, 0, 40)[None, None]  # the peak is at the left end
    target = torch.ones(1, 40, dtype=torch.int64)
    maps = LocalizationMaps(torch.tensor([0]), line, line)
    thresholds = torch.linspace(0, 1, 11)
    evaluator = MapEvaluator(2, thresholds)
    evaluator.add(evaluator.count(maps, target, distance_tenths(line, maps.classes, target)))
    assert evaluator.coverage(0.5) == [1.0] * 5 + [0.0] * 5
    # The same map under another class's name covers nothing.
    wrong = LocalizationMaps(torch.tensor([1]), line, line)
    evaluator = MapEvaluator(2, thresholds)
    evaluator.add(evaluator.count(wrong, target, distance_tenths(line, maps.classes, target)))
    assert evaluator.coverage(0.5) == [0.0] * 10


def test_coverage_over_all_tenths_is_the_recall():
    thresholds, evaluator = torch.linspace(0, 1, 11), MapEvaluator(4, torch.linspace(0, 1, 11))
    hit = true = 0
    for maps, present, target in images():
        tenths = distance_tenths(maps, present, target)
        counts = evaluator.count(LocalizationMaps(present, maps, maps), target, tenths)
        labels = argmax_labels(maps, present, float(thresholds[3]))
        counted = torch.isin(target, present + 1)
        assert torch.equal(tenths >= 0, counted)
        hit, true = hit + int((labels == target)[counted].sum()), true + int(counted.sum())
        assert int(counts.coverage.sum()) == int(counted.sum())
        assert int(counts.coverage[:, 4:].sum()) == int((labels == target)[counted].sum())
        evaluator.add(counts)
    assert 0 < hit < true


def test_scores_by_number_of_classes_are_those_of_the_images():
    thresholds = torch.linspace(0, 1, 11)
    evaluator, parts = MapEvaluator(4, thresholds), {}
    for number, (maps, present, target) in zip((1, 1, 2, 3, 5, 0), images(), strict=True):
        counts = evaluator.count(LocalizationMaps(present, maps, maps), target)
        evaluator.add(counts, number)
        if number:
            part = parts.setdefault(min(number, 3), MapEvaluator(4, thresholds))
            part.add(counts)
    found = evaluator.by_number_of_classes(float(thresholds[3]))
    assert [group["classes"] for group in found] == ["1", "2", "3 or more"]
    assert [group["images"] for group in found] == [2, 1, 2]
    for group, part in zip(found, parts.values(), strict=True):
        assert group["miou"] == pytest.approx(float(part.sweep()["miou"][3]), nan_ok=True)


def test_bootstrap_in_blocks_draws_the_same_sets(monkeypatch):
    counts = torch.randint(1, 99, (7, 3, 4), generator=torch.Generator().manual_seed(0))
    at_once = bootstrap_miou(counts, resamples=50, seed=1)
    monkeypatch.setattr("ribseg.metrics.bootstrap.BLOCK", 20)
    np.testing.assert_array_equal(bootstrap_miou(counts, resamples=50, seed=1), at_once)


def test_bootstrap_of_equal_images_has_no_spread():
    counts = torch.tensor([[[3, 1], [4, 2], [5, 1]]]).repeat(10, 1, 1)
    draws = bootstrap_miou(counts, 20)
    assert np.ptp(draws) < 1e-12
    assert draws[0] == pytest.approx(float(pooled_scores(counts).miou))
    assert interval(draws) == (pytest.approx(draws[0]), pytest.approx(draws[0]))


def test_full_size_refuses_the_map_of_another_image():
    maps = LocalizationMaps(torch.tensor([0]), torch.zeros(1, 2, 3), None, (8, 12))
    assert full_size(maps, (8, 12)).shape == (1, 8, 12)
    with pytest.raises(ValueError, match=r"\(8, 12\)"):
        full_size(maps, (12, 8))


def test_wrong_labels_share_no_class():
    for seed in range(20):
        labels = torch.zeros(5)
        labels[[1, 3]] = 1
        wrong = wrong_labels(labels, np.random.default_rng(seed))
        assert wrong.sum() == 2
        assert (wrong * labels).sum() == 0
    assert wrong_labels(torch.ones(3), np.random.default_rng(0)).sum() == 0


def test_relabel_gives_the_maps_to_the_present_classes():
    wrong = Adaptation(ViewMaps([torch.zeros(1, 2, 2)], torch.tensor([4])), torch.tensor([4]), 3, None)
    right = relabel(wrong, torch.tensor([0.0, 1, 1, 0, 0]))
    assert right.classes.tolist() == [1]
    assert right.maps.classes.tolist() == [1]


def test_centre_prior_and_whole_image_keep_the_labels_of_cam():
    full = torch.rand(2, 9, 7)
    maps = LocalizationMaps(torch.tensor([0, 2]), full[:, ::4, ::4], full, (9, 7))
    for control in (centre_prior(maps), whole_image(maps)):
        assert torch.equal(control.full.argmax(0)[1:-1], full.argmax(0)[1:-1])
    assert centre_prior(maps).full.amax(0)[4, 3] == 1
    assert centre_prior(maps).full.amax(0)[0, 0] == pytest.approx(0, abs=1e-6)
    assert (whole_image(maps).full.amax(0) == 1).all()


def test_controls_survive_one_pixel_and_no_class():
    for shape in ((1, 1, 5), (0, 4, 4)):
        full = torch.rand(shape)
        maps = LocalizationMaps(torch.arange(shape[0]), full, full)
        assert centre_prior(maps).full.shape == shape
        assert whole_image(maps).full.shape == shape
