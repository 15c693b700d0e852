"""LPCAM: its equation with every point a cluster, k-means, and what is learnt before the first image."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from quick_run import folder_run
from torch import nn

from ribseg.checks import SettingError
from ribseg.functional import cosine_kmeans
from ribseg.functional.cam import normalize, resize, resize_and_sum
from ribseg.methods.cam import cam
from ribseg.methods.lpcam import LPCAM
from ribseg.seeds import rng
from ribseg.types import TrainingImages

CLASSES = 3
EVERY = {"prototypes": 10**6, "images": 10**6, "locations": 10**6}  # each point is a mean


class Net(nn.Module):
    """Features of 4 channels at stride 4."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 4, stride=4)
        self.weight = nn.Parameter(torch.randn(CLASSES, 4, 1, 1) * 3)

    def features(self, images):
        """(N, 3, H, W) -> (N, 4, h, w)."""
        return self.layer(images)


def image(index, size=(16, 24)):
    generator = torch.Generator().manual_seed(index)
    views = [torch.randn(3, *size, generator=generator), torch.randn(3, 8, 12, generator=generator)]
    return [torch.stack([view, view.flip(-1)]) for view in views]


TRAINING = TrainingImages(torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0]]), image)


def learnt(network, **settings):
    method = LPCAM(network, **settings)
    method.use(method.prepare(TRAINING, rng(0, "test")))
    return method


def means_by_definition(network, number, **thresholds):
    """Prototypes and contexts of a class where each location is a cluster of its own."""
    inside, outside = [], []
    for index in TRAINING.labels[:, number].nonzero().flatten().tolist():
        views = image(index)
        labels = F.one_hot(torch.tensor(number), CLASSES).float()
        maps = cam(network, views, labels).maps
        whole = normalize(resize_and_sum(maps, tuple(maps[0].shape[1:])))
        features = network.features(views[0][:1])[0].detach()
        strong = resize(whole, tuple(features.shape[1:]))[0] > 0.1
        inside.append(features[:, strong].T)
        outside.append(features[:, ~strong].T)
    heads = network.weight.detach().flatten(1)
    share = [(torch.cat(side) @ heads.T).softmax(1)[:, number] for side in (inside, outside)]
    kept = share[0] > thresholds["keep"]
    between = (share[1] > thresholds["context_low"]) & (share[1] < thresholds["context_high"])
    return torch.cat(inside)[kept], torch.cat(outside)[between]


@pytest.mark.parametrize("thresholds", [(0.5, 0.05, 0.9), (0.3, 1.0, 1.0)])
def test_maps_are_mean_cosines_to_prototypes_less_those_to_context(thresholds):
    network = Net()
    settings = dict(zip(("keep", "context_low", "context_high"), thresholds, strict=True))
    method = learnt(network, **EVERY, **settings)
    views = image(9)
    found = method(views=views, labels=torch.tensor([1.0, 1.0, 0.0]))
    assert found.classes.tolist() == [0, 1]
    for place, number in enumerate((0, 1)):
        prototypes, contexts = means_by_definition(network, number, **settings)
        assert len(prototypes)
        assert bool(len(contexts)) == (thresholds[1] < 1)
        for view, maps in zip(views, found.maps, strict=True):
            features = network.features(view).detach()
            merged = (features[0] + features[1].flip(-1))[None]
            expected = F.cosine_similarity(merged, prototypes[:, :, None, None]).mean(0)
            if len(contexts):
                expected = expected - F.cosine_similarity(merged, contexts[:, :, None, None]).mean(0)
            torch.testing.assert_close(maps[place], expected.relu(), atol=1e-5, rtol=1e-4)


def test_what_is_kept_is_counted_and_a_class_without_images_has_the_head():
    network = Net()
    state = LPCAM(network, keep=0.0).prepare(TRAINING, rng(0, "test"))
    assert state["directions"].shape == (CLASSES, 4)
    assert state["kept"][2].tolist() == [1, 0]
    torch.testing.assert_close(state["directions"][2], F.normalize(network.weight.detach().flatten(1))[2])
    strict = LPCAM(network, keep=1.0).prepare(TRAINING, rng(0, "test"))
    assert strict["kept"][:, 0].tolist() == [1, 1, 1]  # the most probable one


@pytest.mark.parametrize("images", [1, 2, 10])
def test_it_says_how_often_it_will_look_at_an_image(images):
    seen = []
    counted = TrainingImages(TRAINING.labels, lambda index: seen.append(index) or image(index))
    method = LPCAM(Net(), images=images)
    method.prepare(counted, rng(0, "test"))
    assert len(seen) == method.passes_per_image(TRAINING.labels)


def test_draws_are_of_the_generator_alone():
    network = Net().train()
    few = {"prototypes": 2, "images": 2, "locations": 3}
    one, two, other = (LPCAM(network, **few).prepare(TRAINING, rng(seed, "x")) for seed in (0, 0, 1))
    assert torch.equal(one["directions"], two["directions"])
    assert not torch.equal(one["directions"], other["directions"])
    assert network.training
    assert all(p.grad is None for p in network.parameters())


def test_it_says_what_is_missing():
    network = Net()
    with pytest.raises(RuntimeError, match="needs prototypes"):
        LPCAM(network)(views=image(0), labels=torch.ones(CLASSES))
    with pytest.raises(ValueError, match=r"of shape \(3, 4\), got \(2, 4\)"):
        LPCAM(network).use({"directions": torch.ones(2, 4)})
    method = learnt(network)
    assert len(method(views=image(0), labels=torch.zeros(CLASSES)).maps[0]) == 0
    with pytest.raises(ValueError, match="labels of shape"):
        method(views=image(0), labels=torch.ones(2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("prototypes", "images", "locations", "iterations")),
        *((name, 1.1) for name in ("foreground", "keep", "context_low", "context_high")),
    ],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(SettingError, match=name):
        LPCAM(Net(), **{name: value})
    with pytest.raises(SettingError, match=r"context_low: expected at most context_high=0\.1"):
        LPCAM(Net(), context_high=0.1, context_low=0.2)


def test_clusters_are_those_that_points_were_drawn_around():
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(4)
    lengths = torch.rand(400, 1, generator=generator) + 0.5
    points = (centres.repeat(100, 1) + 0.05 * torch.randn(400, 4, generator=generator)) * lengths
    found = [cosine_kmeans(points, 4, np.random.default_rng(seed)) for seed in range(20)]
    best = max(found, key=lambda means: float((F.normalize(points) @ F.normalize(means).T).amax(1).mean()))
    order = best.argmax(0)
    torch.testing.assert_close(F.normalize(best[order]), centres, atol=0.02, rtol=0)
    members = points[points.argmax(1) == 0]
    torch.testing.assert_close(best[order[0]], members.mean(0))  # of the points, not of their directions


def test_every_cluster_has_a_point():
    same = torch.ones(5, 2)
    assert torch.equal(cosine_kmeans(same, 3, np.random.default_rng(0)), torch.ones(3, 2))
    assert cosine_kmeans(torch.randn(2, 3), 7, np.random.default_rng(0)).shape == (2, 3)
    with pytest.raises(ValueError, match="at least one point"):
        cosine_kmeans(torch.zeros(0, 3), 2, np.random.default_rng(0))


def test_it_is_a_method_like_all_others_and_learns_once(tmp_path, tree):
    run = "run=[classifier,methods,evaluate]"
    chosen = ("methods=[cam,lpcam]", "methods.lpcam.locations=5")
    results = folder_run(tmp_path, tree, run, *chosen)
    assert set(results["localization"]) == {"cam", "lpcam"}
    assert results["localization"]["lpcam"]["label"] == "LPCAM"
    maps = Path(results["store"]["lpcam"]) / "maps"
    first = {path.name: path.read_bytes() for path in maps.iterdir()}
    (state,) = (tmp_path / "store").glob("lpcam_state-*/state.safetensors")
    written = state.stat().st_mtime_ns
    # A stage that was killed takes what had been learnt; the maps are the same.
    (maps.parent / "manifest.json").unlink()
    (maps / "im_03.npz").unlink()
    folder_run(tmp_path, tree, "run=[lpcam]", *chosen)
    assert {path.name: path.read_bytes() for path in maps.iterdir()} == first
    assert state.stat().st_mtime_ns == written
    other = folder_run(tmp_path, tree, "run=[lpcam]", *chosen, "methods.lpcam.prototypes=3")
    assert other["store"]["lpcam"] != results["store"]["lpcam"]
    assert len(list((tmp_path / "store").glob("lpcam_state-*"))) == 2
