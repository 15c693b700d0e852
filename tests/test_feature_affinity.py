"""PSA's affinities: losses, walk, network, and the stages with them."""

from pathlib import Path

import pytest
import torch
from quick_run import folder_run

from ribseg.data.io.maps import LocalizationMaps
from ribseg.errors import ConfigError
from ribseg.functional import feature_affinity_losses, feature_random_walk
from ribseg.functional.irn import neighbour_offsets
from ribseg.methods.refine import walk_maps_by_features
from ribseg.models import Backbone, PSANet


def slow_losses(features, labels, radius):
    """Pair by pair, as the definition reads."""
    sums = {"background": [], "foreground": [], "negative": []}
    _, _, height, width = features.shape
    for n in range(len(features)):
        for y in range(height - radius + 1):
            for x in range(radius - 1, width - radius + 1):
                for dy, dx in neighbour_offsets(radius):
                    one, other = int(labels[n, y, x]), int(labels[n, y + dy, x + dx])
                    if 255 in (one, other):
                        continue
                    distance = (features[n, :, y, x] - features[n, :, y + dy, x + dx]).abs().mean()
                    affinity = torch.exp(-distance)
                    if one != other:
                        sums["negative"].append(-torch.log(1 - affinity + 1e-5))
                    else:
                        kind = "background" if one == 0 else "foreground"
                        sums[kind].append(-torch.log(affinity + 1e-5))
    return {kind: torch.stack(values).mean() for kind, values in sums.items()}


def test_losses_equal_a_loop_over_pairs():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 7, 9, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 7, 9), generator=generator)
    labels[0, 2, 3:6] = 255
    found, expected = feature_affinity_losses(features, labels, 3), slow_losses(features, labels, 3)
    for kind, value in expected.items():
        torch.testing.assert_close(getattr(found, kind), value, rtol=1e-4, atol=0)
    total = (expected["background"] + expected["foreground"]) / 4 + expected["negative"] / 2
    torch.testing.assert_close(found.total, total, rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="bring the labels"):
        feature_affinity_losses(features, labels[:, :3])


def test_walk_equals_the_dense_product():
    generator = torch.Generator().manual_seed(1)
    features, maps = torch.rand(4, 9, 11, generator=generator), torch.rand(2, 9, 11, generator=generator)
    flat = features.flatten(1).T.double()
    affinity = torch.exp(-(flat[:, None] - flat[None]).abs().mean(-1)) ** 8
    y, x = torch.meshgrid(torch.arange(9), torch.arange(11), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], 1)
    near = ((places[:, None] - places[None]) ** 2).sum(-1) < 25
    matrix = affinity * near
    matrix = matrix / matrix.sum(0, keepdim=True)
    dense = maps.flatten(1).double() @ torch.linalg.matrix_power(matrix, 64)
    walked = feature_random_walk(maps, features, 5, 8.0, 64)
    assert walked.dtype == torch.float32
    torch.testing.assert_close(walked.flatten(1).double(), dense, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 80), (61, 77)])
def test_maps_walk_within_what_looks_alike(size):
    strided, coarse = (-(-size[0] // 4), -(-size[1] // 4)), (-(-size[0] // 8), -(-size[1] // 8))
    maps, features = torch.zeros(1, *strided), torch.zeros(3, *coarse)
    features[:, :, 5:], maps[0, 0, 2] = 9, 1
    walked = walk_maps_by_features(LocalizationMaps(torch.tensor([3]), maps, None), features, size)
    assert walked.shape == (1, *size)
    assert walked.max() == 1
    assert (walked[0, :, :32] > 0.1).all()
    assert (walked[0, :, 48:] < 0.01).all()
    nothing = LocalizationMaps(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 1, 1), None)
    assert walk_maps_by_features(nothing, features, size).shape == (0, *size)


def test_network_freezes_its_backbone():
    network = PSANet(Backbone("resnet10t")).train()
    assert not network.backbone.training
    network(torch.rand(1, 3, 64, 64)).sum().backward()
    assert all(weight.grad is None for weight in network.backbone.parameters())
    assert all(weight.grad is not None for weight in network.mix.parameters())
    assert network.predict(torch.rand(2, 3, 50, 70), 64).shape == (448, 7, 9)
    with pytest.raises(ConfigError, match="stride 8"):
        PSANet(Backbone("convnext_atto", kwargs={"patch_size": 8}))


PSA = ("affinity=psa_small", "refine=psa", "affinity.module.radius=2")


def test_stages_with_these_affinities(tmp_path, tree):
    results = folder_run(tmp_path, tree, "run=[classifier,cam,refine,evaluate]", "refine.maps=cam", *PSA)
    assert 0 <= results["pseudo_masks"]["variants"]["random_walk"]["val"]["miou"] <= 1
    maps = sorted((Path(results["store"]["random_walk"]) / "maps").iterdir())
    assert len(maps) == 10
    with pytest.raises(ConfigError, match=r"at least 16 \* affinity\.module\.radius = 80 pixels"):
        folder_run(
            tmp_path,
            tree,
            "refine.maps=cam",
            "run=[classifier,cam,refine]",
            *PSA[:2],
            "affinity.module.radius=5",
        )
