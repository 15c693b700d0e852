"""What makes RIB fast leaves its maps as they are."""

import copy
from collections import deque
from contextlib import nullcontext

import pytest
import torch
from test_rib import CLASSES, LABELS, STEPS, Own, classifier, references, released, views
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import ribseg
from ribseg.errors import DeviceMemoryError
from ribseg.functional import winograd
from ribseg.kernels import folding
from ribseg.kernels.folding import FoldedConv, Folds, fold_batch_norm
from ribseg.methods.rib import partition
from ribseg.methods.stops import Check, first_stop

LR = 1e-3


def largest_difference(ours, theirs):
    """Largest difference of the maps, as a share of the largest value."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def adapt(model=None, steps=STEPS, batches=None, **kwargs):
    settings = {"pooling": ribseg.GNDRP(0.4), "lr": LR, "margin": None, "area_limit": None} | kwargs
    rib = ribseg.RIB(model or classifier(), steps=steps, **settings)
    return rib(views(), LABELS, references(steps) if batches is None else batches)


@pytest.fixture(params=[False, True], ids=["library", "winograd"])
def kernels(request, monkeypatch):
    """The convolutions of a small network on a CPU: the library's, or ours, which large ones get."""
    if request.param:
        monkeypatch.setattr(folding, "MIN_CHANNELS", 1)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("pixels", [2**17, 2**13])
@pytest.mark.parametrize(("steps", "bound"), [(4, 1e-4), (10, 5e-4)])
def test_maps_are_those_of_the_plain_loop_in_single_precision(steps, bound, pixels, monkeypatch):
    monkeypatch.setattr("ribseg.methods.rib.CACHED_PIXELS", pixels)
    out = adapt(steps=steps)
    plain, _, _ = released(
        classifier(), views(), LABELS, references(steps), ribseg.GNDRP(0.4), steps, LR, 1e9, 1.0
    )
    assert largest_difference(out.maps, plain) <= bound


@pytest.mark.usefixtures("kernels")
def test_maps_are_those_of_the_plain_loop_to_the_last_digits_in_double_precision():
    def double(tensors):
        return [tensor.double() for tensor in tensors]

    model, settings = classifier().double(), (ribseg.GNDRP(0.4), 10, LR)
    batches = [(images.double(), labels) for images, labels in references(10)]
    rib = ribseg.RIB(model, *settings, margin=None, area_limit=None)
    out = rib(double(views()), LABELS, batches)
    plain, _, _ = released(model, double(views()), LABELS, batches, *settings, 1e9, 1.0)
    # The sums themselves are kept in single precision.
    assert largest_difference(out.maps, plain) <= 1e-6


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
@pytest.mark.parametrize("preset", ["official", "paper"])
def test_references_in_parts_give_the_same_maps(chunk, preset):
    whole = adapt(preset=preset, margin=3.0 if preset == "paper" else None)
    parts = adapt(preset=preset, margin=3.0 if preset == "paper" else None, reference_chunk=chunk)
    assert largest_difference(parts.maps, whole.maps) <= 1e-5


def test_references_in_parts_are_passed_in_parts():
    model, seen = Own(), []
    original = model.features

    def spy(images):
        seen.append(len(images))
        return original(images)

    model.features = spy
    rib = ribseg.RIB(model, steps=2, lr=LR, margin=None, area_limit=None, reference_chunk=2)
    rib(views(), LABELS, references(1, rows=5))
    assert seen[4:7] == [2, 2, 1]  # after the four views


@pytest.mark.parametrize("make", [Own, classifier])
def test_a_callers_autocast_sees_the_steps(make):
    def maps(**settings):
        with torch.autocast("cpu", torch.bfloat16, **settings):
            features = make().features(views()[0])
            out = adapt(make(), lr=0.1)
            assert torch.is_autocast_cache_enabled() == settings.get("cache_enabled", True)
        assert features.dtype == torch.bfloat16
        return out.maps

    kept = maps()
    assert all(torch.equal(a, b) for a, b in zip(kept, maps(cache_enabled=False), strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        still = adapt(make(), lr=0.0).maps
    assert largest_difference(kept, still) > 1e-2


CASES = {
    "none": {},
    "margin": {"pooling": ribseg.GAP(), "margin": 1e-6},
    "area": {"area_limit": 0.0},
    "area of all views": {"area_limit": 0.0, "preset": "fixed"},
    "explodes": {"lr": 1e15, "pooling": ribseg.GAP()},
    "last maps": {"preset": "paper"},
}


@pytest.mark.parametrize("case", CASES)
def test_reading_the_stop_rules_late_changes_nothing(case, monkeypatch):
    prompt = adapt(**CASES[case])
    monkeypatch.setattr(
        "ribseg.methods.rib.first_stop", lambda checks, deferred: first_stop(checks, deferred=True)
    )
    late = adapt(**CASES[case])
    assert (late.steps, late.stopped) == (prompt.steps, prompt.stopped)
    assert (prompt.stopped is None) == (case in ("none", "last maps"))
    assert all(torch.equal(a, b) for a, b in zip(late.maps, prompt.maps, strict=True))


@pytest.mark.parametrize("late", [False, True])
def test_a_broken_reference_ends_the_adaptation_before_it_spoils_a_map(late, monkeypatch):
    monkeypatch.setattr(
        "ribseg.methods.rib.first_stop", lambda checks, deferred: first_stop(checks, deferred=late)
    )
    batches = list(references())
    batches[1][0][0, 0, 0, 0] = float("nan")
    out = adapt(batches=batches)
    assert (out.steps, out.stopped) == (1, "not_finite")
    two = adapt(steps=2, batches=references(), power=0.0)
    all_rates_alike = adapt(batches=batches, power=0.0)
    assert largest_difference(all_rates_alike.maps, two.maps) <= 1e-6


class HostWaits(TorchDispatchMode):
    """Counts copies from the host for which it would wait; what reads a number of "meta" raises anyway."""

    copies = waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        copies = {torch.ops.aten._to_copy.default: 0, torch.ops.aten.copy_.default: 1}  # place of the source
        source = args[copies[func]] if func in copies else result
        if isinstance(source, torch.Tensor) and (source.device.type, result.device.type) == ("cpu", "meta"):
            self.copies += 1
            self.waits += not ((kwargs or {}).get("non_blocking") or args[2:] == (True,))
        return result


@pytest.mark.parametrize("preset", ["official", "paper", "fixed"])
def test_host_waits_for_no_device(preset, monkeypatch):
    """A tensor without numbers stands for a GPU: whatever would have to wait for its numbers fails."""
    monkeypatch.setattr(
        "ribseg.methods.rib.first_stop", lambda checks, deferred: deque(checks, maxlen=0) and None
    )
    monkeypatch.setattr("torch.autocast", lambda *args, **kwargs: nullcontext())  # knows no such device
    rib = ribseg.RIB(classifier().to("meta"), steps=STEPS, lr=LR, preset=preset)
    with HostWaits() as host:
        rib(views(), LABELS, references())
    assert host.copies > 2 * STEPS
    assert host.waits == 0


def test_checks_wait_for_work_behind_them():
    order = []

    def work():
        yield Check(0, torch.tensor([1.0]), lambda values: order.append(("first", values)))
        order.append("queued")
        yield None
        yield Check(1, torch.tensor([2.0, 3.0]), lambda values: "margin")
        order.append("queued in vain")
        yield None
        order.append("never")

    assert first_stop(work(), deferred=True) == (1, "margin")
    assert order == ["queued", ("first", [1.0]), "queued in vain"]
    order.clear()
    assert first_stop(work(), deferred=False) == (1, "margin")
    assert order == [("first", [1.0]), "queued"]


@pytest.mark.parametrize("name", ["resnet10t", "resnext26ts", "efficientnet_b0", "convnext_atto"])
def test_folding_keeps_features_and_gradients(name):
    torch.manual_seed(0)
    model = ribseg.Classifier(name, CLASSES).double().eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    tail = nn.Sequential(*model.tail)
    images = torch.randn(2, 3, 47, 70, dtype=torch.float64)
    trunk = model.trunk(images).detach()
    expected, folded = tail(trunk), fold_batch_norm(tail)
    actual = folded(trunk)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(fold_batch_norm(model.trunk)(images), model.trunk(images))
    weights = list(tail.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(actual.sum(), weights), torch.autograd.grad(expected.sum(), weights), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_folding_follows_buffers_that_move():
    # timm's low-pass filters are buffers, which a conversion replaces.
    model = ribseg.Classifier("resnetblur18", 2, backbone_kwargs={"channels": (8, 8, 12, 16)}).eval()
    folded = fold_batch_norm(model.trunk)
    model.double()
    images = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    torch.testing.assert_close(folded(images), model.trunk(images))


def test_folding_leaves_out_what_it_must():
    class Shared(nn.Module):
        """The convolution has a second reader."""

        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y

    class Depends(Shared):
        """What it does depends on its input."""

        def forward(self, x):
            return self.norm(self.conv(x)) if x.mean() > 0 else self.conv(x)

    reflecting = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4))
    no_statistics = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    plain = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False))
    images = torch.rand(2, 3, 9, 9)
    for module, pairs in [
        (Shared(), 0), (Depends(), 0), (reflecting, 0), (no_statistics, 0),
        (nn.Sequential(Depends(), plain), 1),
    ]:  # fmt: skip
        module.eval()
        folded = fold_batch_norm(module)
        assert sum(isinstance(layer, FoldedConv) for layer in folded.modules()) == pairs
        torch.testing.assert_close(folded(images), module(images))
        assert not any(isinstance(layer, FoldedConv) for layer in module.modules())


def test_every_batch_norm_of_a_resnet_is_folded_and_follows_its_weights():
    model = classifier().eval()
    parts = partition(model, "published")
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    folded = [layer for part in (parts.frozen, parts.adapted) for layer in part.modules()]
    assert sum(isinstance(layer, FoldedConv) for layer in folded) == norms > 0
    assert {id(p) for p in parts.parameters} == {id(p) for stage in model.tail for p in stage.parameters()}
    with torch.no_grad():
        parts.parameters[0].mul_(2)
        features = parts.adapted(parts.frozen(views()[0]))
    torch.testing.assert_close(features, model.features(views()[0]))


def test_large_convolutions_of_a_step_are_our_own(monkeypatch):
    model = ribseg.Classifier("resnet10t", CLASSES, backbone_kwargs={"channels": (8, 8, 128, 128)})
    used, conv2d = [], winograd.conv2d
    monkeypatch.setattr(winograd, "conv2d", lambda x, *rest: used.append(len(x)) or conv2d(x, *rest))
    batches = list(references(2))
    adapt(model, steps=2, batches=batches)
    large = 3  # of the two layers of 3 x 3 in layer3 and the two in layer4, one has stride 2
    views_and_references = [2] * 4 + [3]  # of the first step; the last has views alone
    assert sorted(used) == sorted(large * (views_and_references + [2] * 4))
    used.clear()
    with torch.autocast("cpu", torch.bfloat16):
        adapt(model, steps=2, batches=batches)
    assert not used


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [(2**17, [2] * 4 + [3] * (STEPS - 1)), (1, [1] * (2 * 4 + 3 * (STEPS - 1)))],
    ids=["all at once", "one by one"],
)
def test_head_alone_passes_each_image_through_the_network_once(pixels, expected, monkeypatch):
    monkeypatch.setattr("ribseg.methods.rib.CACHED_PIXELS", pixels)
    model, counted = classifier(), []
    rib = ribseg.RIB(model, steps=STEPS, lr=LR, margin=None, area_limit=None, trainable="head")
    network = rib.frozen

    def spy(images):
        counted.append(len(images))
        return network(images)

    rib.frozen = spy
    rib(views(), LABELS, references())
    assert counted == expected


def test_a_module_of_ones_own_gets_all_images_at_once():
    model, counted = Own(), []
    original = model.features
    model.features = lambda images: counted.append(len(images)) or original(images)
    rib = ribseg.RIB(model, steps=2, lr=LR, margin=None, area_limit=None, trainable="head")
    rib(views(), LABELS, references(1))
    assert counted == [2] * 4 + [3]


def test_too_little_memory_is_said_with_what_to_do():
    model = Own()
    before = copy.deepcopy(model.state_dict())

    def full(images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    rib = ribseg.RIB(model, steps=2, lr=LR)
    rib.adapted = full
    with pytest.raises(DeviceMemoryError, match=r"64 x 96.*reference_chunk"):
        rib(views(), LABELS, references())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_half_precision_gives_nearly_the_same_maps():
    whole = adapt()
    with torch.autocast("cpu", torch.bfloat16):
        half = adapt()
    difference = largest_difference(half.maps, whole.maps)
    assert 1e-6 < difference < 0.05  # another precision it is
    assert all(view.dtype == torch.float32 for view in half.maps)


@pytest.mark.nightly
def test_compiling_is_bounded_over_image_sizes(monkeypatch):
    counter, compile_ = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **kwargs: compile_(f, backend=counter, **kwargs))
    torch._dynamo.reset()
    rib = ribseg.RIB(classifier(), steps=3, lr=LR, margin=None, area_limit=None, compile=True)
    plain = ribseg.RIB(classifier(), steps=3, lr=LR, margin=None, area_limit=None)
    # No side of the features is 8, their number of channels: old releases of torch compile that case apart.
    for size in [(160, 192), (176, 176), (192, 160), (208, 160)]:
        batches = [(F.interpolate(images, (80, 80)), labels) for images, labels in references(3)]
        out, expected = rib(views(size=size), LABELS, batches), plain(views(size=size), LABELS, batches)
        assert largest_difference(out.maps, expected.maps) <= 1e-5
    assert counter.frame_count <= 12  # of 17 sizes in two parts, with and without gradients


@pytest.mark.usefixtures("kernels")
def test_shared_folds_gather_the_gradients_of_several_passes():
    torch.manual_seed(0)
    model = classifier().double().eval()
    trunks = [model.trunk(view.double()).detach() for view in views()]
    tail = nn.Sequential(*model.tail)
    weights = list(tail.parameters())
    expected = torch.autograd.grad(sum(tail(trunk).sum() for trunk in trunks), weights)
    folded = fold_batch_norm(tail)
    folds = Folds(folded, "no module")
    with folds.shared():
        for trunk in trunks:
            folded(trunk).sum().backward()
        norm = next(layer for layer in folded.modules() if isinstance(layer, nn.BatchNorm2d))
        assert norm.weight.grad is None
        folds.settle()
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient)
    with torch.no_grad():
        weights[0].mul_(2)
    torch.testing.assert_close(folded(trunks[0]), tail(trunks[0]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES)
def test_a_gpu_gives_the_maps_of_the_cpu(case, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    here, there = adapt(**CASES[case]), adapt(classifier().cuda(), **CASES[case])
    assert (there.steps, there.stopped) == (here.steps, here.stopped)
    assert largest_difference([view.cpu() for view in there.maps], here.maps) <= 1e-3
