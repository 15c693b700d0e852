"""Confident labels and the walk of localization maps, pixel by pixel."""

from functools import partial

import numpy as np
import pytest
import torch

from ribseg.checks import SettingError
from ribseg.data.io.maps import LocalizationMaps
from ribseg.functional import argmax_labels, dense_crf
from ribseg.methods.refine import confident_labels, labels_by_crf, walk_maps


def ramp(height=8, width=40):
    """One map that rises from 0 to 1 from left to right, of class 4."""
    full = torch.linspace(0, 1, width).expand(1, height, width)
    return LocalizationMaps(torch.tensor([4]), full[:, ::4, ::4], full)


def test_confident_labels_of_a_ramp():
    image = np.zeros((8, 40, 3), np.uint8)
    labels = confident_labels(image, ramp(), 0.6, 0.2, crf=None)
    assert labels.dtype == np.uint8
    values = np.linspace(0, 1, 40)
    expected = np.where(values > 0.6, 5, np.where(values > 0.2, 255, 0))
    assert (labels == expected).all()


def test_maps_at_stride_4_serve_where_no_others_were_kept():
    image, whole = np.zeros((8, 40, 3), np.uint8), ramp()
    small = LocalizationMaps(whole.classes, whole.strided, None, (8, 40))
    labels = confident_labels(image, small, 0.6, 0.2, crf=None)
    steps = labels[0].tolist()
    assert steps == sorted(steps, key=[0, 255, 5].index)
    assert np.mean(labels == confident_labels(image, whole, 0.6, 0.2, crf=None)) > 0.8


def test_two_classes_and_the_numbers_that_the_crf_sees():
    full = torch.zeros(2, 4, 6)
    full[0, :, :2], full[1, :, 4:] = 0.9, 0.3
    maps = LocalizationMaps(torch.tensor([2, 7]), full[:, ::4, ::4], full)
    seen = []

    def crf(image, labels, num_labels):
        seen.append((np.unique(labels).tolist(), num_labels))
        return labels

    labels = confident_labels(np.zeros((4, 6, 3), np.uint8), maps, crf=crf)
    assert (labels == [3, 3, 0, 0, 255, 255]).all()
    assert seen == [([0, 1], 3), ([0, 1, 2], 3)]


def test_without_classes_all_is_background():
    maps = LocalizationMaps(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, 2), torch.zeros(0, 8, 8))
    assert not confident_labels(np.zeros((8, 8, 3), np.uint8), maps).any()
    assert walk_maps(maps, torch.zeros(2, 2), (8, 8)).shape == (0, 8, 8)


def test_says_what_is_wrong():
    image = np.zeros((8, 40, 3), np.uint8)
    with pytest.raises(ValueError, match="expected maps of an image"):
        confident_labels(image[:4], ramp())
    with pytest.raises(ValueError, match="background <= foreground"):
        confident_labels(image, ramp(), 0.1, 0.2)


@pytest.mark.parametrize("size", [(60, 80), (61, 77), (4, 90)])
def test_walk_fills_what_a_boundary_encloses(size):
    strided = -(-size[0] // 4), -(-size[1] // 4)
    maps, wall = torch.zeros(1, *strided), torch.zeros(strided)
    wall[:, 10], maps[0, 0, 2] = 1, 1
    walked = walk_maps(LocalizationMaps(torch.tensor([3]), maps, None), wall, size)
    assert walked.shape == (1, *size)
    assert walked.max() == 1
    labels = argmax_labels(walked, torch.tensor([3]), 0.27)
    assert (labels[:, :36] == 4).all()
    assert (labels[:, 44:] == 0).all()


def test_walk_of_nothing_is_nothing():
    maps = LocalizationMaps(torch.tensor([0]), torch.zeros(1, 3, 3), None)
    assert not walk_maps(maps, torch.zeros(3, 3), (12, 12)).any()


@pytest.mark.parametrize(("per_class", "peaks"), [(False, [1.0, 0.25]), (True, [1.0, 1.0])])
def test_maximum_of_all_classes_or_of_each(per_class, peaks):
    strided = torch.tensor([1.0, 0.25])[:, None, None].expand(2, 3, 4)
    maps = LocalizationMaps(torch.tensor([0, 1]), strided, None)
    walked = walk_maps(maps, torch.zeros(3, 4), (12, 16), power=1.0, per_class=per_class)
    torch.testing.assert_close(walked.amax((1, 2)), torch.tensor(peaks))


def test_a_crf_on_maps_begins_with_the_labels_of_the_threshold():
    """Without iterations the CRF gives what it was given: argmax over the maps and the background."""
    image = np.zeros((9, 12, 3), np.uint8)
    maps = torch.rand(2, 9, 12, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([1, 4])
    nothing = partial(dense_crf, iterations=0, backend="torch")
    for threshold in (0.2, 0.5, 0.8):
        expected = argmax_labels(maps, classes, threshold)
        assert np.array_equal(labels_by_crf(image, maps, classes, threshold, nothing), expected.numpy())
    assert not labels_by_crf(image, maps, classes, 1.0, nothing).any()
    assert (labels_by_crf(image, maps, classes, 0.0, nothing) > 0).all()
    given = []
    labels_by_crf(image, maps, classes, 0.5, lambda image, scores: given.append(scores) or scores)
    torch.testing.assert_close(given[0][0] * (1 - maps.amax(0) + maps.sum(0)), 1 - maps.amax(0))
    with pytest.raises(SettingError, match="threshold"):
        labels_by_crf(image, maps, classes, 1.5, nothing)
