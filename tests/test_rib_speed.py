"""What makes RIB fast leaves its maps as they are."""

import copy

import pytest
import torch
from test_rib import LABELS, LR, OFFICIAL, STEPS, Own, classifier, plain, references, views
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

import ribseg
from ribseg.errors import DeviceMemoryError
from ribseg.methods.partition import partition


def largest_difference(ours, theirs):
    """Largest difference of the maps, as a share of the largest value."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def adapt(model=None, steps=STEPS, batches=None, **kwargs):
    settings = {"pooling": ribseg.GNDRP(0.4), "lr": LR, "margin": None, "area_limit": None} | kwargs
    rib = ribseg.RIB(model or classifier(), steps=steps, **settings)
    return rib(views(), LABELS, references(steps) if batches is None else batches)


@pytest.mark.parametrize("pixels", [2**17, 2**13])
@pytest.mark.parametrize(("steps", "bound"), [(4, 1e-4), (10, 5e-4)])
def test_maps_are_those_of_the_plain_loop_in_single_precision(steps, bound, pixels, monkeypatch):
    monkeypatch.setattr("ribseg.methods.rib.CACHED_PIXELS", pixels)
    out = adapt(steps=steps)
    assert largest_difference(out.maps, plain(classifier(), references(steps), OFFICIAL, steps)) <= bound


def test_maps_are_those_of_the_plain_loop_to_the_last_digits_in_double_precision():
    def double(tensors):
        return [tensor.double() for tensor in tensors]

    model = classifier().double()
    batches = [(images.double(), labels) for images, labels in references(10)]
    rib = ribseg.RIB(model, OFFICIAL, 10, LR, margin=None, area_limit=None)
    out = rib(double(views()), LABELS, batches)
    # The sums themselves are kept in single precision.
    assert largest_difference(out.maps, plain(model, batches, OFFICIAL, 10)) <= 1e-6


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


def test_a_broken_reference_ends_the_adaptation_before_it_spoils_a_map():
    batches = list(references())
    batches[1][0][0, 0, 0, 0] = float("nan")
    out = adapt(batches=batches)
    assert (out.steps, out.stopped) == (1, "not_finite")
    two = adapt(steps=2, batches=references(), power=0.0)
    all_rates_alike = adapt(batches=batches, power=0.0)
    assert largest_difference(all_rates_alike.maps, two.maps) <= 1e-6


@pytest.mark.parametrize("trainable", ["published", "layer4", "head"])
def test_the_two_parts_of_a_classifier_are_its_features(trainable):
    model = classifier().eval()
    parts = partition(model, trainable)
    learning = [p for stage in model.tail for p in stage.parameters()]
    expected = {"published": learning, "layer4": [*model.tail[-1].parameters()], "head": []}[trainable]
    assert {id(p) for p in parts.parameters} == {id(p) for p in expected}
    torch.testing.assert_close(parts.adapted(parts.frozen(views()[0])), model.features(views()[0]))


def test_a_step_reads_numbers_from_the_device_once(monkeypatch):
    reads = []
    for name in ("tolist", "item", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, original=original: reads.append(1) or original(self, *a)
        )
    counts = []
    for steps in (2, 3, 7):
        reads.clear()
        adapt(steps=steps, batches=[(None, None)] * steps, margin=1e9, area_limit=1.0)
        counts.append(len(reads))
    assert counts[1] - counts[0] == 1
    assert counts[2] - counts[1] == 4


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [(2**17, [2] * 4), (1, [1] * (2 * 4))],
    ids=["all at once", "one by one"],
)
def test_head_alone_passes_the_views_through_the_network_once_and_no_references(
    pixels, expected, monkeypatch
):
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
    rib = ribseg.RIB(
        model,
        lambda maps, labels: maps.mean((2, 3)),
        steps=2,
        lr=LR,
        margin=None,
        area_limit=None,
        trainable="head",
    )
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES)
def test_a_gpu_gives_the_maps_of_the_cpu(case, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    here, there = adapt(**CASES[case]), adapt(classifier().cuda(), **CASES[case])
    assert (there.steps, there.stopped) == (here.steps, here.stopped)
    assert largest_difference([view.cpu() for view in there.maps], here.maps) <= 1e-3
