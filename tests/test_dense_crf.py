"""Dense CRF against pydensecrf called directly, the lattice against sums over all pairs, and PAMR."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ribseg.data import read_image
from ribseg.functional import dense_crf, pixel_adaptive
from ribseg.kernels.permutohedral import PermutohedralLattice

SEGMENTER = {"gaussian_sxy": 1, "bilateral_sxy": 67, "bilateral_srgb": 3, "bilateral_compat": 4}


def labels_of(height, width, count=3, seed=0):
    """Smooth blobs of `count` labels."""
    noise = torch.rand(1, count, 6, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (height, width), mode="bicubic")[0].argmax(0).numpy()


@pytest.fixture
def photograph():
    """Two noisy regions of colour and a disc."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:48, :60]
    image = np.where(columns[..., None] < 25, [200, 60, 50], [40, 120, 190])
    image[(rows - 24) ** 2 + (columns - 40) ** 2 < 100] = [230, 220, 90]
    return np.clip(image + rng.normal(0, 6, (48, 60, 3)), 0, 255).astype(np.uint8)


def direct(image, labels, count, gt_prob=0.7, iterations=10):
    """The published call, with the package's own unaries."""
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="pip install pydensecrf2")
    from pydensecrf.utils import unary_from_labels

    field = densecrf.DenseCRF2D(image.shape[1], image.shape[0], count)
    field.setUnaryEnergy(unary_from_labels(labels, count, gt_prob=gt_prob, zero_unsure=False))
    field.addPairwiseGaussian(sxy=3, compat=3)
    field.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.ascontiguousarray(image), compat=10)
    return np.array(field.inference(iterations)).argmax(0).reshape(labels.shape)


def agreement(first, second):
    """The mIoU of two label maps."""
    return np.mean(
        [
            ((first == c) & (second == c)).sum() / ((first == c) | (second == c)).sum()
            for c in np.unique(first)
        ]
    )


@pytest.mark.parametrize("count", [2, 3, 5])
def test_pydensecrf_backend_is_the_published_call(photograph, count):
    labels = labels_of(48, 60, count)
    expected = direct(photograph, labels, count)
    refined = dense_crf(photograph, labels)
    assert refined.dtype == labels.dtype
    assert (refined == expected).all()
    assert (refined != labels).mean() > 0.02, "the example is too easy"


def test_only_labels_that_occur_compete_and_keep_their_ids(photograph):
    labels = labels_of(48, 60)
    ids = np.array([0, 7, 15])
    assert (
        dense_crf(photograph, ids[labels], backend="torch")
        == ids[dense_crf(photograph, labels, backend="torch")]
    ).all()


def test_num_labels_lets_absent_ones_compete(photograph):
    labels = labels_of(48, 60, 2)
    assert (dense_crf(photograph, labels, num_labels=4) == direct(photograph, labels, 4)).all()


@pytest.mark.parametrize("settings", [{}, SEGMENTER, {"gaussian_compat": 0}, {"bilateral_compat": 0}])
def test_torch_backend_agrees(photograph, settings):
    pytest.importorskip("pydensecrf.densecrf", reason="pip install pydensecrf2")
    labels = labels_of(48, 60)
    reference = dense_crf(photograph, labels, **settings)
    assert agreement(reference, dense_crf(photograph, labels, backend="torch", **settings)) > 0.99
    probabilities = torch.from_numpy(np.eye(3, dtype=np.float32)[labels] * 0.5 + 1 / 6).permute(2, 0, 1)
    first = dense_crf(photograph, probabilities, **settings)
    second = dense_crf(photograph, probabilities, backend="torch", **settings)
    torch.testing.assert_close(second.sum(0), torch.ones(48, 60))
    assert (first - second).abs().mean() < 1e-3


def test_torch_backend_agrees_on_a_real_photograph(real_data):
    """At 375 x 500 and three labels, as promised."""
    pytest.importorskip("pydensecrf.densecrf", reason="pip install pydensecrf2")
    paths = sorted((real_data / "VOCdevkit/VOC2012/JPEGImages").glob("*.jpg"))
    image = next(image for image in map(read_image, paths) if image.shape == (375, 500, 3))
    labels = labels_of(375, 500)
    reference = dense_crf(image, labels)
    assert (reference != labels).mean() > 0.05, "the CRF did nothing"
    assert agreement(reference, dense_crf(image, labels, backend="torch")) >= 0.98


def test_unsure_pixels_are_decided(photograph):
    labels = (np.mgrid[:48, :60][1] >= 25).astype(np.uint8)
    unsure = labels.copy()
    unsure[10:20, 15:35] = 255
    refined = dense_crf(photograph, unsure, backend="torch")
    assert refined.dtype == np.uint8
    assert (refined[10:20, 15:35] == labels[10:20, 15:35]).mean() > 0.95


@pytest.mark.parametrize("value", [0, 4, 255])
@pytest.mark.parametrize("backend", ["torch", "pydensecrf"])
def test_one_label_stays(photograph, value, backend):
    if backend == "pydensecrf":
        pytest.importorskip("pydensecrf.densecrf", reason="pip install pydensecrf2")
    labels = np.full((48, 60), value)
    assert (dense_crf(photograph, labels, backend=backend) == labels).all()


def test_no_iterations_is_the_unary(photograph):
    labels = torch.from_numpy(labels_of(48, 60))
    assert torch.equal(dense_crf(photograph, labels, iterations=0, backend="torch"), labels)


@pytest.mark.parametrize(
    ("image", "given", "settings", "message"),
    [
        (np.zeros((4, 5, 3)), np.zeros((4, 5), int), {}, "uint8"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), int), {}, "resize"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5)), {}, "integers"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), int), {"gt_prob": 1.0}, "gt_prob"),
        (np.zeros((4, 5, 3), np.uint8), np.full((4, 5), 3), {"num_labels": 3}, "consecutively"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), int), {"backend": "cuda"}, "backend"),
    ],
)
def test_says_what_is_wrong(image, given, settings, message):
    with pytest.raises(ValueError, match=message):
        dense_crf(image, given, **settings)


def test_says_what_to_install(photograph, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.delitem(sys.modules, "pydensecrf.densecrf", raising=False)
    with pytest.raises(ModuleNotFoundError, match="pip install pydensecrf2"):
        dense_crf(photograph, labels_of(48, 60), backend="pydensecrf")


def test_auto_takes_what_there_is(photograph, monkeypatch):
    labels = labels_of(48, 60)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert (dense_crf(photograph, labels) == dense_crf(photograph, labels, backend="torch")).all()


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_lattice_is_about_a_gaussian(dimensions):
    """Against the sum over all pairs; the lattice itself is an approximation."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(1500, dimensions, generator=generator) * 3
    values = torch.stack([torch.ones(1500), (points[:, 0] > 1.5).float()], 1)
    kernel = torch.exp(-(torch.cdist(points, points) ** 2) / 2)
    exact, filtered = kernel @ values, PermutohedralLattice(points)(values)
    ratio = (exact[:, 1] / exact[:, 0]) - (filtered[:, 1] / filtered[:, 0])
    assert ratio.abs().mean() < 0.03


def test_lattice_is_linear_and_keeps_columns_apart():
    lattice = PermutohedralLattice(torch.rand(40, 3, generator=torch.Generator().manual_seed(1)) * 4)
    kernel = lattice(torch.eye(40))
    assert (kernel >= 0).all()
    values = torch.rand(40, 3, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(lattice(values), kernel @ values)


def test_lattice_of_points_too_far_apart():
    with pytest.raises(ValueError, match="too far apart"):
        PermutohedralLattice(torch.rand(10, 5) * 1e9)


def test_pixel_adaptive_follows_the_image(photograph):
    labels = torch.from_numpy((photograph[..., 0] > 140).astype(np.int64))
    noisy = F.one_hot(labels, 2).permute(2, 0, 1).float()
    flip = torch.rand(48, 60, generator=torch.Generator().manual_seed(0)) < 0.2
    noisy[:, flip] = 1 - noisy[:, flip]
    refined = pixel_adaptive(torch.from_numpy(photograph).permute(2, 0, 1), noisy)
    torch.testing.assert_close(refined.sum(0), torch.ones(48, 60))
    assert (refined.argmax(0) == labels).float().mean() > 0.97


def test_pixel_adaptive_against_loops():
    generator = torch.Generator().manual_seed(0)
    image, maps = torch.rand(3, 5, 6, generator=generator), torch.rand(2, 5, 6, generator=generator)
    refined = pixel_adaptive(image, maps, iterations=1, dilations=(1, 3), temperature=0.3)
    for y, x in [(0, 0), (2, 3), (4, 5)]:
        places = [
            (min(max(y + d * v, 0), 4), min(max(x + d * u, 0), 5))
            for d in (1, 3)
            for v in (-1, 0, 1)
            for u in (-1, 0, 1)
            if (v, u) != (0, 0)
        ]
        colours = torch.stack([image[:, q, p] for q, p in places])
        score = -(colours - image[:, y, x]).abs() / (0.3 * colours.std(0))
        weight = score.mean(1).softmax(0)
        expected = sum(w * maps[:, q, p] for w, (q, p) in zip(weight, places, strict=True))
        torch.testing.assert_close(refined[:, y, x], expected)


def test_pixel_adaptive_edge_cases():
    image = torch.zeros(3, 4, 5, dtype=torch.uint8)
    assert pixel_adaptive(image, torch.zeros(0, 4, 5)).shape == (0, 4, 5)
    constant = torch.full((2, 4, 5), 0.25, dtype=torch.float64)
    torch.testing.assert_close(pixel_adaptive(image, constant), constant, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="channels come first"):
        pixel_adaptive(torch.zeros(4, 5, 3), torch.zeros(2, 4, 5))
    with pytest.raises(ValueError, match="dilation"):
        pixel_adaptive(image, torch.zeros(2, 4, 5), dilations=())
