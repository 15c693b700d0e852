"""AdvCAM: equal to the released program on recorded weights and images, and a method like all others."""

from pathlib import Path

import numpy as np
import pytest
import torch
from quick_run import folder_run
from torch import nn

import ribseg
from ribseg.checks import SettingError
from ribseg.functional.cam import class_maps
from ribseg.methods.advcam import AdvCAM, climbed

# Made by the loop of obtain_CAM_masking.py of the authors' repository (commit 2650fcd, MIT), run in double
# precision on a CPU over the network below: views at three scales, the second one in the place of scale 0.5.
RECORDED = Path(__file__).parent / "data" / "advcam.npz"
LABELS = torch.tensor([1.0, 0.0, 1.0, 0.0])
NARROW = {"channels": (8, 8, 12, 16)}


class Net(nn.Module):
    """The network of the recording."""

    def __init__(self):
        super().__init__()
        layers = (nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU())
        self.stage4 = nn.Sequential(*layers, nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU())
        self.classifier = nn.Conv2d(8, 4, 1, bias=False)

    @property
    def weight(self):
        """The head's weights."""
        return self.classifier.weight

    def features(self, images):
        """(N, 3, H, W) -> (N, 8, h, w)."""
        return self.stage4(images)


@pytest.fixture(scope="module")
def recorded():
    with np.load(RECORDED) as arrays:
        return {name: torch.from_numpy(arrays[name].astype(np.float64)) for name in arrays.files}


@pytest.fixture
def network(recorded):
    network = Net().double()
    network.load_state_dict(
        {n.removeprefix("weight_"): v for n, v in recorded.items() if n.startswith("weight_")}
    )
    return network


@pytest.fixture
def views(recorded):
    images = [recorded[f"view_{number}"] for number in range(3)]
    return [torch.stack([image, image.flip(-1)]) for image in images]


@pytest.mark.parametrize("steps", [27, 8, 4])
@pytest.mark.parametrize("together", [1, 2])
def test_maps_are_those_of_the_released_program(steps, together, recorded, network, views):
    found = AdvCAM(network, steps, classes_at_once=together)(views=views, labels=LABELS)
    factor = (
        2 if steps > 10 else 1
    )  # which it multiplies all views with; no map that is divided by its maximum sees it
    assert found.classes.tolist() == [0, 2]
    for number, maps in enumerate(found.maps):
        expected = recorded[f"maps_{steps}_{number}"]
        torch.testing.assert_close(factor * maps.double(), expected, rtol=1e-4, atol=1e-5 * expected.max())
    assert found.steps == steps


def test_one_step_is_the_cam_of_each_image(network, views):
    found = AdvCAM(network, 1)(views=views, labels=LABELS)
    for maps, view in zip(found.maps, views, strict=True):
        plain = class_maps(network.features(view), network.weight).detach()
        for place, number in enumerate((0, 2)):
            positive = plain[:, number].relu()
            count = (positive > 0).sum((1, 2))
            share = count / (count.sum() * (network.weight[number] > 0).sum())
            expected = share[0] * positive[0] + share[1] * positive[1].flip(-1)
            torch.testing.assert_close(maps[place], expected.float())


def test_the_trace_ends_with_the_result(network, views):
    method = AdvCAM(network, 12)
    trace, whole = method.trace(views=views, labels=LABELS), method(views=views, labels=LABELS)
    assert [result.steps for result in trace] == list(range(1, 13))
    assert all(torch.equal(one, other) for one, other in zip(trace[-1].maps, whole.maps, strict=True))
    assert not torch.equal(trace[5].maps[0], trace[6].maps[0])
    assert torch.equal(trace[5].maps[1], trace[11].maps[1])  # the short view has 6 steps


def test_steps_of_short_views(network):
    numbers = {27: 13, 11: 5, 10: 5, 6: 5, 5: 5, 3: 3, 1: 1}
    assert {steps: AdvCAM(network, steps).steps_of(1) for steps in numbers} == numbers
    assert AdvCAM(network, 27).steps_of(0) == 27
    assert AdvCAM(network, 27, short_views=()).steps_of(1) == 27


def test_images_stay_in_their_range_and_move_by_the_step():
    images, gradient = torch.rand(2, 2, 3, 4, 4), torch.randn(2, 2, 3, 4, 4)
    moved = climbed(images, gradient, 0.08)
    assert (moved - images).abs().amax() <= 0.08 + 1e-6
    for one, other in zip(images, moved, strict=True):
        assert one.min() <= other.min()
        assert other.max() <= one.max()
    assert torch.equal(climbed(images, torch.zeros_like(gradient), 0.08), images)


@pytest.mark.parametrize("freeze", ["published", "none"])
def test_the_classifier_is_not_changed_and_its_frozen_trunk_lets_gradients_pass(freeze):
    torch.manual_seed(0)
    classifier = ribseg.Classifier("resnet10t", 3, freeze=freeze, backbone_kwargs=NARROW)
    view = torch.randn(2, 3, 64, 64)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    with torch.no_grad():
        found = AdvCAM(classifier, 6)(views=[view, view], labels=torch.tensor([1.0, 1.0, 0.0]))
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    assert all(p.grad is None for p in classifier.parameters())
    assert classifier.training
    first = AdvCAM(classifier, 1)(views=[view], labels=torch.tensor([1.0, 1.0, 0.0])).maps[0]
    assert not torch.allclose(found.maps[0], 6 * first)
    assert found.maps[0].dtype == torch.float32


def test_without_classes(network, views):
    found = AdvCAM(network)(views=views, labels=torch.zeros(4))
    assert [tuple(maps.shape) for maps in found.maps] == [(0, 1, 1)] * 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("step_size", -1),
        ("weight", "x"),
        ("threshold", 2),
        ("short_views", [-1]),
        ("classes_at_once", 0),
    ],
)
def test_settings_out_of_range_are_refused(name, value, network):
    with pytest.raises(SettingError, match=name):
        AdvCAM(network, **{name: value})


@pytest.mark.usefixtures("undrawn")
def test_it_is_a_method_like_all_others(tmp_path, tree):
    run = "run=[classifier,cam,advcam,evaluate,report]"
    results = folder_run(tmp_path, tree, run, "methods=[default,advcam]", "methods.advcam.steps=3")
    assert results["methods"]["advcam"]["steps_mean"] == 3
    assert "gain_over_cam" in results["localization"]["advcam"]["split"]["val"]
    assert ">AdvCAM<" in (tmp_path / "out" / "report.html").read_text()
