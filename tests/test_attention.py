"""Refinement by attention: timm's own matrices, CLIP-ES's equations, and a stage beside the random walk."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from quick_run import folder_run
from test_tokens import SMALL, SWIN, classifier

import ribseg
from ribseg.checks import SettingError
from ribseg.data.io.maps import LocalizationMaps
from ribseg.errors import ConfigError
from ribseg.functional.attention import attention_affinity, box_mask, refine_by_attention
from ribseg.methods.refine import maps_by_attention
from ribseg.models.attention import attention_layers, patch_attention, patch_side

WITHOUT = ("swin", "mambaout")
VITS = [name for name in SMALL if not name.startswith(WITHOUT)]
BLOCKS = 3  # of all small networks


def by_definition(network, images):
    """The attention of each block from its queries and keys, which hooks take: (N, L, L), mean over heads."""
    taken, found = [], []
    real = torch.nn.functional.scaled_dot_product_attention

    def attend(query, key, value, **kwargs):
        taken.append((query, key))
        return real(query, key, value, **kwargs)

    torch.nn.functional.scaled_dot_product_attention = attend
    try:
        with torch.no_grad():
            network.eval().features(images)
    finally:
        torch.nn.functional.scaled_dot_product_attention = real
    for query, key in taken:
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        found.append(scores.softmax(-1).mean(1))
    return found


@pytest.mark.parametrize("name", VITS)
def test_it_is_the_attention_that_the_network_computes(name):
    model, stride = classifier(name), SMALL[name][1]
    images = torch.randn(2, 3, 70, 97)
    rows, columns = (-(-side // stride) for side in images.shape[-2:])
    prefix = len(by_definition(model, images)[0][0]) - rows * columns
    expected = torch.stack(by_definition(model, images)[-2:])[:, :, prefix:, prefix:].mean(0)
    model.train()
    before = [layer.fused_attn for layer in attention_layers(model)]
    found = patch_attention(model, images, blocks=2)
    torch.testing.assert_close(found, expected)
    assert found.shape == (2, rows * columns, rows * columns)
    assert model.training
    assert [layer.fused_attn for layer in attention_layers(model)] == before
    assert not any(layer.attn_drop._forward_pre_hooks for layer in attention_layers(model))
    assert patch_side(model) == stride


@pytest.mark.parametrize("name", [SWIN, "mambaout_femto"])
def test_networks_without_attention_between_patches_are_refused(name):
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    with pytest.raises(ConfigError, match=r"no attention between patches; use a ViT"):
        patch_attention(classifier(name), torch.zeros(1, 3, 64, 64))
    cnn = ribseg.Classifier("resnet10t", 2, backbone_kwargs={"channels": (8, 8, 12, 16)})
    with pytest.raises(ConfigError, match=r"'resnet10t' has no attention between patches"):
        attention_layers(cnn)


def test_more_blocks_than_there_are_are_refused():
    with pytest.raises(ConfigError, match=r"expected blocks <= 3, .* got 4"):
        patch_attention(classifier(), torch.zeros(1, 3, 32, 32), blocks=4)


def test_the_affinity_is_symmetric_and_nearly_doubly_stochastic():
    attention = torch.rand(12, 12) + 0.1
    affinity = attention_affinity(attention, rounds=50, power=2)
    torch.testing.assert_close(affinity, affinity.T)
    torch.testing.assert_close(affinity.sum(1), torch.ones(12))
    one = attention_affinity(attention, rounds=50, power=1)
    torch.testing.assert_close(one @ one, affinity)
    first = attention / attention.sum(0)
    first = first / first.sum(1, keepdim=True)
    torch.testing.assert_close(attention_affinity(attention, 1, 1), (first + first.T) / 2)


def test_a_patch_that_nobody_attends_to_gives_no_nan():
    attention = torch.eye(4)
    attention[2] = attention[:, 2] = 0
    assert torch.isfinite(attention_affinity(attention)).all()


def test_boxes_surround_regions_that_touch_at_corners():
    maps = torch.zeros(2, 6, 8)
    maps[0, 1, 1] = maps[0, 2, 2] = 1  # one region over a corner: a box of 2 x 2
    maps[0, 4:, 6:] = 0.41  # another, up to the right and bottom side
    maps[0, 4, 2] = 0.39  # too weak
    expected = torch.zeros(2, 6, 8, dtype=torch.bool)
    expected[0, 1:3, 1:3] = expected[0, 4:, 6:] = True
    assert torch.equal(box_mask(maps, 0.4), expected)
    short = expected.clone()
    short[:, -1], short[:, :, -1] = False, False
    assert torch.equal(box_mask(maps, 0.4, short=True), short)
    assert not box_mask(torch.zeros(1, 3, 3)).any()
    assert box_mask(torch.zeros(0, 3, 3)).shape == (0, 3, 3)


def test_boxes_of_winding_regions_are_whole():
    """As the regions of OpenCV, which the released program asks."""
    import cv2

    generator = np.random.default_rng(0)
    for _ in range(20):
        strong = (generator.random((15, 19)) < 0.45).astype(np.uint8)
        expected = np.zeros((15, 19), bool)
        _, _, stats, _ = cv2.connectedComponentsWithStats(strong, connectivity=8)
        for left, top, width, height, _ in stats[1:]:
            expected[top : top + height, left : left + width] = True
        found = box_mask(torch.from_numpy(strong)[None].float(), 0.5)[0]
        assert np.array_equal(found.numpy(), expected)


def test_a_map_walks_only_from_inside_its_boxes():
    maps = torch.zeros(1, 2, 3)
    maps[0, 0, 0], maps[0, 1, 2] = 1.0, 0.3
    affinity = torch.rand(6, 6)
    found = refine_by_attention(maps, affinity, 0.4)[0].flatten()
    column = affinity[:, 0] - affinity[:, 0].min()
    torch.testing.assert_close(found, column / column.max())
    with pytest.raises(ValueError, match=r"affinity of 6 x 6 patches .* got \(5, 5\)"):
        refine_by_attention(maps, torch.eye(5))


@pytest.mark.parametrize(
    ("name", "value"),
    [("rounds", 0), ("power", 1.5), ("box_threshold", 1.1), ("short_boxes", "no")],
)
def test_settings_out_of_range_are_refused(name, value):
    maps = LocalizationMaps(torch.tensor([0]), torch.ones(1, 4, 4), None)
    with pytest.raises(SettingError, match=name):
        maps_by_attention(maps, torch.eye(1), (16, 16), 16, **{name: value})


@pytest.mark.parametrize("size", [(33, 50), (16, 16), (7, 5)])
@pytest.mark.parametrize("full", [True, False])
def test_maps_of_any_size_are_averaged_over_patches(size, full):
    strided = [-(-side // 4) for side in size]
    maps = LocalizationMaps(
        torch.tensor([1, 4]), torch.rand(2, *strided), torch.rand(2, *size) if full else None, size
    )
    places = -(-size[0] // 14) * -(-size[1] // 14)
    found = maps_by_attention(maps, torch.rand(places, places), size, 14)
    assert found.shape == (2, *size)
    assert found.dtype == torch.float32
    assert 0 <= found.min() <= found.max() <= 1
    nothing = LocalizationMaps(torch.zeros(0, dtype=torch.int64), torch.zeros(0, *strided), None, size)
    assert maps_by_attention(nothing, torch.rand(places, places), size, 14).shape == (0, *size)


def quick_vit(name="deit_tiny_patch16_224"):
    kwargs, stride = SMALL[name]
    text = ",".join(f"{key}:{list(v) if isinstance(v, tuple) else v}" for key, v in kwargs.items())
    return (
        f"classifier.model.backbone={name}", f"classifier.model.output_stride={stride}",
        "classifier.model.backbone_kwargs=null", f"classifier.model.backbone_kwargs={{{text}}}",
        "refine.maps=cam", "refine.variants=[none,attention,attention_crf]", "refine.attention.blocks=3",
    )  # fmt: skip


RUN = "run=[classifier,cam,refine,evaluate,report]"


@pytest.mark.usefixtures("undrawn")
def test_it_is_a_stage_of_the_refinement_without_a_training(tmp_path, tree):
    results = folder_run(tmp_path, tree, RUN, *quick_vit())
    assert {"attention", "pseudo_masks"} <= set(results["store"])
    assert {"affinity", "affinity_labels", "random_walk"}.isdisjoint(results["store"])
    assert set(results["pseudo_masks"]["variants"]) == {"none", "attention", "attention_crf"}
    assert 0 < results["localization"]["attention"]["best_miou"] < 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "+ attention + CRF" in page
    maps = sorted((Path(results["store"]["attention"]) / "maps").glob("*.npz"))
    assert len(maps) == 10
    short = "run=[classifier,cam,attention]"
    again = folder_run(tmp_path, tree, *quick_vit(), short, "refine.attention.box_threshold=0.9")
    assert again["store"]["cam"] == results["store"]["cam"]
    assert again["store"]["attention"] != results["store"]["attention"]
    others = ("refine.walk.steps=2", "refine.variants=[attention]", "refine.attention_threshold=0.4")
    same = folder_run(tmp_path, tree, *quick_vit(), short, *others)
    assert same["store"]["attention"] == results["store"]["attention"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), r"refine\.attention: 'resnet10t' has no attention between patches; use a ViT"),
        (quick_vit(SWIN), r"'swin_tiny_patch4_window7_224' has no attention between patches"),
        ((*quick_vit(), "refine.attention.blocks=4"), r"refine\.attention: expected blocks <= 3"),
        ((*quick_vit(), "refine.attention.rounds=0"), r"refine\.attention\.rounds: expected an integer >= 1"),
        ((*quick_vit(), "refine.attention_threshold=2"), r"refine\.attention_threshold"),
    ],
)
def test_what_cannot_work_ends_the_run_before_the_training(tmp_path, tree, overrides, message):
    variants = ("refine.maps=cam", "refine.variants=[attention]")
    with pytest.raises(ConfigError, match=message):
        folder_run(tmp_path, tree, RUN, *variants, *overrides)
    assert not list((tmp_path / "store").glob("classifier-*"))
