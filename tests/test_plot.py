"""Colours of figures: contrast to both backgrounds, and difference with each kind of colour blindness."""

from itertools import combinations

import numpy as np
import pytest
import torch

from ribseg.errors import DataError
from ribseg.metrics.per_image import PerImageCounts
from ribseg.plot import (
    gradient_figure,
    grid_figure,
    overlay,
    overlay_mask,
    ratio_figure,
    svg_of,
    sweep_figure,
    threshold_figure,
)
from ribseg.plot.style import COLOURS, DARK, line_style

# What each kind of colour blindness makes of linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
VISION = {
    "normal": np.eye(3),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "tritan": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]
    ),
}


def linear(colour):
    values = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """WCAG 2.1."""
    low, high = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(rgb):
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.119192, 0.9503041],
    ]
    ratio = np.array(to_xyz) @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883]
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("background", ["#ffffff", DARK])
def test_colours_stand_out_from_both_backgrounds(colour, background):
    assert contrast(colour, background) >= 3  # WCAG 2.1, 1.4.11


@pytest.mark.parametrize("kind", VISION)
def test_colours_differ_for_everybody(kind):
    seen = [lab(VISION[kind] @ linear(colour)) for colour in COLOURS]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 20


def test_lines_differ():
    assert len({tuple(line_style(number).values()) for number in range(20)}) == 20


def test_svg_takes_the_colour_of_the_page_and_escapes_names():
    curve = {"thresholds": [0, 1], "miou": [0.1, None], "precision": [0.2, 0.3], "recall": [0.4, 0.1]}
    drawing = svg_of(threshold_figure({"<b>$x$": curve}), 'a "title" <i>')
    assert "currentColor" in drawing
    assert "#000000" not in drawing
    assert "<b>" not in drawing
    assert "<i>" not in drawing


def test_counts_of_single_images_are_kept(tmp_path):
    counts = {"cam": torch.tensor([[[4, 0, 0], [6, 1, 0], [5, 2, 0]], [[0, 0, 0]] * 3])}
    known = PerImageCounts.from_counts(["a", "b"], counts)
    known.save(tmp_path / "val.npz")
    read = PerImageCounts.load(tmp_path / "val.npz")
    assert torch.equal(read.of("cam"), counts["cam"])
    assert torch.equal(read.of("cam", ["b", "a"]), counts["cam"].flip(0))
    first, second = read.iou("cam")
    assert first == pytest.approx((4 / 7 + 0) / 2)
    assert np.isnan(second)  # nothing is scored
    (tmp_path / "val.npz").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"rerun=\[evaluate\]"):
        PerImageCounts.load(tmp_path / "val.npz")


def test_overlays_go_from_the_image_to_the_colours():
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    mask = np.zeros((4, 5), np.uint8)
    mask[1], mask[2] = 3, 255
    for blend, other in ((overlay, np.linspace(0, 1, 20).reshape(4, 5)), (overlay_mask, mask)):
        np.testing.assert_allclose(blend(image, other, opacity=0), image / 255)
    palette = np.full((256, 3), 51, np.uint8)
    whole = overlay_mask(image, mask, palette, opacity=1)
    np.testing.assert_allclose(whole[1:3], 0.2)
    np.testing.assert_allclose(whole[0], image[0] / 255)  # background has no colour
    half = overlay_mask(image, mask, palette, opacity=0.5)
    np.testing.assert_allclose(half[1], (image[1] / 255 + 0.2) / 2)


def test_gradients_of_each_layer_are_shown_from_zero_to_their_maximum():
    gradients = torch.rand(2, 6, 8, 8)
    figure = gradient_figure(torch.rand(2, 8, 8), gradients, ["a", "b"])
    axes = np.array(figure.axes).reshape(2, 7)
    shown = axes[1, 3].images[0].get_array()
    np.testing.assert_allclose(shown, gradients[1, 2] / gradients[1, 2].max(), rtol=1e-6)
    assert [axis.get_title() for axis in axes[0, 1:]] == [f"$G_{{{n}}}$" for n in range(1, 7)]
    assert axes[1, 0].get_ylabel() == "b"
    gradient_figure(np.zeros((1, 8, 8, 3)), np.zeros((1, 1, 8, 8)))  # nothing to divide by


def test_ratios_have_a_panel_per_phase_and_a_line_per_region():
    ratios = {"before RIB": {"digit": [0.5, None], "mark": [0.1, 0.2]}, "after RIB": {"digit": [1, 1]}}
    bars = {"before RIB": {"digit": [0.1, None], "mark": [0, 0.1]}, "after RIB": {"digit": [0, 0]}}
    for deviations in (None, bars):
        panels = ratio_figure(ratios, deviations).axes
        assert [panel.get_title() for panel in panels] == list(ratios)
        lines = [text.get_text() for text in panels[0].get_legend().get_texts()]
        assert lines == ["digit", "mark"]
    np.testing.assert_array_equal(panels[0].lines[0].get_ydata(), [0.5, np.nan])


def test_a_sweep_has_a_line_of_means_per_method_and_deviations_as_bars():
    lines = {"CAM $1": {1: [0.4, 0.5], 5: [0.4], 20: [0.5]}, "RIB": {20: [0.6, 0.5], 1: [0.4, 0.4]}}
    figure = sweep_figure(lines, "rib.steps")
    (axis,) = figure.axes
    first, second = axis.containers
    np.testing.assert_allclose(first.lines[0].get_xydata(), [[1, 45], [5, 40], [20, 50]])
    np.testing.assert_allclose(second.lines[0].get_xydata(), [[1, 40], [20, 55]])
    bars = second.lines[2][0].get_segments()
    deviation = 10 / 2**0.5
    np.testing.assert_allclose(bars[1], [[20, 55 - deviation], [20, 55 + deviation]])
    assert axis.get_xscale() == "log"
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "5", "20"]
    assert axis.get_xlabel() == "rib.steps"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == list(lines)
    svg_of(figure, "sweep")
    assert sweep_figure({"RIB": {0.0: [0.4], 5: [0.4]}}, "x").axes[0].get_xscale() == "linear"


def test_a_sweep_over_two_settings_is_a_map_per_method():
    grids = {"CAM": {(1, 0.4): [0.4], (2, 0.4): [0.2]}, "RIB": {(1, 0.6): [0.5, 0.7], (2, 0.4): [0.8]}}
    figure = grid_figure(grids, ("rib.steps", "rib.lr"))
    cam, rib = figure.axes[:2]
    shown = np.ma.filled(cam.images[0].get_array(), np.nan)
    np.testing.assert_allclose(shown, [[40, 20], [np.nan, np.nan]])
    np.testing.assert_allclose(np.ma.filled(rib.images[0].get_array(), np.nan), [[np.nan, 80], [60, np.nan]])
    assert cam.images[0].get_clim() == rib.images[0].get_clim() == (20, 80)
    assert {text.get_position(): text.get_text() for text in rib.texts} == {
        (0, 1): "60.0\n±14.1",
        (1, 0): "80.0",
    }
    assert [axis.get_title() for axis in (cam, rib)] == ["CAM", "RIB"]
    assert [text.get_text() for text in rib.get_yticklabels()] == ["0.4", "0.6"]
    assert (cam.get_xlabel(), cam.get_ylabel()) == ("rib.steps", "rib.lr")
    svg_of(figure, "sweep")
