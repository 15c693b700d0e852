"""RIB against the plain algorithm, written anew from the specification."""

import copy
import math

import pytest
import torch
from torch import nn

import ribseg
from ribseg import functional
from ribseg.errors import ConfigError
from ribseg.functional import gap, merge_mirrored
from ribseg.methods.rate import find_rate, growth_of
from ribseg.types import Adaptation, AdaptationStep

CLASSES, STEPS, LR = 5, 4, 1e-3


QUIET = {"steps": STEPS, "margin": None, "area_limit": None}  # without stop rules


def classifier(seed=0):
    torch.manual_seed(seed)
    model = ribseg.Classifier("resnet10t", CLASSES, backbone_kwargs={"channels": (8, 8, 12, 16)})
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 1.5)
                layer.weight.uniform_(0.5, 1.5)
        # Mostly positive maps, so that the logits of the present classes start above zero.
        model.head.weight.normal_(0.03, 0.05)
    return model


def views(seed=1, scales=(1.0, 0.5, 1.5, 2.0), size=(64, 96)):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, 3, *size, generator=generator)
    sides = [[round(side * scale) for side in size] for scale in scales]
    resized = [nn.functional.interpolate(image, tuple(s), mode="bilinear") for s in sides]
    return [torch.cat([view, view.flip(-1)]) for view in resized]


def references(steps=STEPS, rows=3, seed=2):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        labels = torch.zeros(rows, CLASSES)
        labels[torch.arange(rows), torch.randint(3, CLASSES, (rows,), generator=generator)] = 1
        yield torch.randn(rows, 3, 64, 64, generator=generator), labels


LABELS = torch.tensor([1.0, 0, 1, 0, 0])


OFFICIAL, PAPER = ribseg.GNDRP(0.4), ribseg.GNDRP(0.4, "kept", "paper")
# Of the plain function, for a pooling of RIB: without a threshold all locations are kept.
THRESHOLDS = {ribseg.GAP(): math.inf, OFFICIAL: 0.4, ribseg.GNDRP(0.7): 0.7, PAPER: 0.4}


def plain(model, batches, pooling=OFFICIAL, steps=STEPS, margin=1e9, limit=1.0, preset="official"):
    """The plain algorithm, whose rate and images are those of the tests."""
    images = [view.to(model.weight.dtype) for view in views()]
    return functional.rib(
        model, images, LABELS, batches, preset, steps, LR, THRESHOLDS[pooling], margin, area_limit=limit
    )


def assert_equal_to_plain(pooling, margin, limit, stopped, preset="official"):
    model = classifier()
    settings = {"margin": margin, "area_limit": limit, "preset": preset}
    out = ribseg.RIB(model, pooling, STEPS, LR, **settings)(views(), LABELS, references())
    maps = plain(model, references(), pooling, STEPS, margin, limit, preset)
    assert out.stopped == stopped
    for ours, theirs in zip(out.maps, maps, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    return out


@pytest.mark.parametrize("pooling", [ribseg.GAP(), OFFICIAL, ribseg.GNDRP(0.7)], ids=repr)
def test_official_equals_the_plain_loop(pooling):
    out = assert_equal_to_plain(pooling, 1e9, 1.0, None)
    assert out.steps == STEPS
    base = ribseg.cam(classifier(), views(), LABELS)
    # The adaptation did something: otherwise the sum would be a multiple of the plain CAM.
    assert not torch.allclose(out.maps[0], STEPS * base.maps[0], rtol=1e-2)


@pytest.mark.parametrize("margin", [1e9, 1.0])
@pytest.mark.parametrize("pooling", [ribseg.GAP(), PAPER], ids=repr)
def test_paper_equals_the_plain_loop(pooling, margin):
    assert assert_equal_to_plain(pooling, margin, 1.0, None, "paper").steps == STEPS


def own_target_sums(pooling, lr):
    """The watched sum per step, to place the margin between two of them."""
    sums = []

    def spy(maps, labels):
        logits = pooling(maps, labels)
        sums.append(float((logits.detach() * labels).sum()))
        return logits

    ribseg.RIB(classifier(), spy, STEPS, lr, margin=None, area_limit=None)(views(), LABELS, [])
    return [sum(sums[i : i + 3]) for i in range(0, len(sums), 3)]


def test_margin_stops_at_the_released_step():
    sums = own_target_sums(ribseg.GAP(), 1e-3)
    assert abs(sums[0]) < abs(sums[1]) < abs(sums[2])
    model, margin = classifier(), (abs(sums[0]) + abs(sums[1])) / 2
    out = ribseg.RIB(model, ribseg.GAP(), STEPS, 1e-3, margin=margin, area_limit=None)(views(), LABELS, [])
    assert (out.stopped, out.steps) == ("margin", 2)


@pytest.mark.parametrize("preset", ["official", "fixed"])
def test_margin_stop_equals_the_plain_loop(preset):
    assert assert_equal_to_plain(ribseg.GAP(), 1e-6, 1.0, "margin", preset).steps == 1


@pytest.mark.parametrize("preset", ["official", "fixed", "paper"])
def test_area_stop_equals_the_plain_loop(preset):
    assert assert_equal_to_plain(ribseg.GAP(), 1e9, 0.0, "area", preset).steps == 1


def test_area_stop_of_the_released_program_sums_the_first_view_twice():
    settings = {"margin": None, "area_limit": 0.0}
    out = ribseg.RIB(classifier(), ribseg.GAP(), STEPS, LR, **settings)(views(), LABELS, references())
    base = ribseg.cam(classifier(), views(), LABELS)
    torch.testing.assert_close(out.maps[1], base.maps[1])
    assert not torch.allclose(out.maps[0], base.maps[0], rtol=1e-2)


@pytest.mark.parametrize("preset", ["fixed", "paper"])
def test_area_stop_sums_all_views_equally_often(preset):
    rib = ribseg.RIB(classifier(), ribseg.GAP(), STEPS, 1e-3, area_limit=0.0, preset=preset)
    out = rib(views(), LABELS, references())
    base = ribseg.cam(classifier(), views(), LABELS)
    assert out.stopped == "area"
    for summed, once in zip(out.maps, base.maps, strict=True):
        torch.testing.assert_close(summed, once)


def test_paper_sums_one_map_more_and_bounds_the_logits():
    settings = {"pooling": ribseg.GAP(), "steps": 2, "lr": 1e-3, "area_limit": None}
    paper = ribseg.RIB(classifier(), preset="paper", margin=1e9, **settings)(views(), LABELS, references())
    fixed = ribseg.RIB(classifier(), preset="fixed", margin=1e9, **(settings | {"steps": 3}))
    first_two = ribseg.RIB(classifier(), preset="fixed", margin=1e9, **settings)(
        views(), LABELS, references()
    )
    assert paper.steps == 2
    assert (paper.maps[0].sum() > first_two.maps[0].sum()).item()
    assert len(set(map(tuple, (m.shape for m in fixed(views(), LABELS, references()).maps)))) == 4
    # Every logit is above the margin: the gradient is zero, only weight decay moves anything.
    still = ribseg.RIB(classifier(), preset="paper", margin=-1e9, weight_decay=0.0, **settings)
    out = still(views(), LABELS, references())
    base = ribseg.cam(classifier(), views(), LABELS)
    torch.testing.assert_close(out.maps[0], 3 * base.maps[0])
    assert out.stopped is None


def test_presets_bring_their_own_pooling():
    assert repr(ribseg.RIB(classifier(), preset="paper").pooling) == repr(ribseg.GNDRP(0.4, "kept", "paper"))
    assert repr(ribseg.RIB(classifier()).pooling) == repr(ribseg.GNDRP(0.4))


@pytest.mark.parametrize("preset", ["official", "fixed", "paper"])
def test_no_steps_is_the_plain_cam(preset):
    model = classifier()
    out = ribseg.RIB(model, steps=0, preset=preset)(views(), LABELS)
    base = ribseg.cam(model, views(), LABELS)
    assert out.steps == 0
    assert all(torch.equal(a, b) for a, b in zip(out.maps, base.maps, strict=True))


def test_the_first_views_alone():
    settings = {"steps": 3, "lr": 1e-2, "margin": None, "loss_views": (0, 1)}
    two = ribseg.RIB(classifier(), views=2, **settings)(views(), LABELS, references())
    given = ribseg.RIB(classifier(), **settings)(views()[:2], LABELS, references())
    assert len(two.maps) == 2
    assert all(torch.equal(a, b) for a, b in zip(two.maps, given.maps, strict=True))
    with pytest.raises(ValueError, match="loss_views below 1"):
        ribseg.RIB(classifier(), views=1, **settings)(views(), LABELS)


@pytest.mark.parametrize("preset", ["official", "fixed"])
def test_the_first_update_moves_the_second_map(preset):
    model = classifier()
    out = ribseg.RIB(model, steps=1, lr=1.0, preset=preset, margin=None)(views(), LABELS, references())
    base = ribseg.cam(model, views(), LABELS)
    for ours, plain_cam in zip(out.maps, base.maps, strict=True):
        torch.testing.assert_close(ours, plain_cam)


@pytest.mark.parametrize("trainable", ["published", "layer4", "head"])
def test_the_classifier_is_left_exactly_as_it_was(trainable):
    model = classifier()
    model.train()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.backbone.stages[2].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    modes = [layer.training for layer in model.modules()]
    ribseg.RIB(model, steps=3, lr=1e-3, trainable=trainable, margin=None)(views(), LABELS, references())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert flags == [(p.requires_grad, p.grad is None) for p in model.parameters()]
    assert modes == [layer.training for layer in model.modules()]
    assert (model.head.weight.grad == 1).all()


def check_left_after_an_error(model, images, **settings):
    """That an error of the references, which ends RIB, leaves the weights as they were."""
    before = copy.deepcopy(model.state_dict())

    def broken():
        yield from references(1)
        raise OSError("disk")

    rib = ribseg.RIB(model, steps=3, lr=1e-3, **{"margin": None, "area_limit": None} | settings)
    with pytest.raises(OSError, match="disk"):
        rib(images, LABELS, broken())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_it_is_left_so_after_an_error_as_well():
    check_left_after_an_error(classifier(), views())


def test_head_alone_moves_the_head_alone():
    """With frozen features the map of a step is the map under the moved head; by hand for one step."""
    model, lr = classifier(), 1e-2
    out = ribseg.RIB(
        model, ribseg.GAP(), 2, lr, margin=None, area_limit=None, trainable="head", preset="fixed",
        weight_decay=0.0, head_lr_factor=1.0,
    )(views(), LABELS)  # fmt: skip
    model.eval()
    with torch.no_grad():
        features = [model.features(view) for view in views()]
        pooled = sum(features[index].mean((2, 3)).sum(0) for index in (0, 2, 3))
        moved = model.weight.flatten(1).clone()
        moved[[0, 2]] += lr * pooled
        maps = torch.einsum("kd,ndhw->nkhw", moved[[0, 2]], features[0])
    base = ribseg.cam(model, views(), LABELS)
    torch.testing.assert_close(out.maps[0], base.maps[0] + merge_mirrored(maps), rtol=1e-4, atol=1e-5)


def test_an_exploding_rate_ends_at_the_last_finite_step():
    rib = ribseg.RIB(classifier(), ribseg.GAP(), 6, 1e15, margin=None, area_limit=None)
    out = rib(views(), LABELS, references(6))
    assert out.stopped == "not_finite"
    assert 1 <= out.steps < 6
    assert all(torch.isfinite(view).all() for view in out.maps)


def test_a_broken_classifier_gives_finite_zeros_and_says_so():
    model = classifier()
    with torch.no_grad():
        model.head.weight[0] = float("nan")
    out = ribseg.RIB(model)(views(), LABELS, references())
    assert (out.stopped, out.steps) == ("not_finite", 0)
    assert all((view == 0).all() for view in out.maps)
    merged = ribseg.merge_maps(out.maps, (64, 96))
    assert merged.full.shape == (2, 64, 96)


def test_references_are_consumed_lazily_and_may_be_absent():
    taken = []

    def counting():
        for batch in references(10):
            taken.append(1)
            yield batch

    rib = ribseg.RIB(classifier(), ribseg.GAP(), 3, 1e-4, margin=None, area_limit=None)
    rib(views(), LABELS, counting())
    assert len(taken) == 2  # the third update would change nothing that is read
    alone = rib(views(), LABELS)
    nothing = rib(views(), LABELS, iter([(None, None)] * 3))
    assert torch.equal(alone.maps[0], nothing.maps[0])


def test_no_present_class_gives_empty_maps():
    for out in (
        ribseg.RIB(classifier())(views(), torch.zeros(CLASSES), references()),
        ribseg.cam(classifier(), views(), torch.zeros(CLASSES)),
    ):
        merged = ribseg.merge_maps(out.maps, (64, 96))
        assert (out.steps, out.stopped, len(out.classes)) == (0, None, 0)
        assert merged.strided.shape == (0, 16, 24)
        assert merged.full.shape == (0, 64, 96)


@pytest.mark.parametrize("method", [ribseg.cam, ribseg.controls.feature_norm])
def test_images_without_a_class_cost_no_forward_pass(method, monkeypatch):
    model = classifier()
    monkeypatch.setattr(model, "features", lambda images: pytest.fail("features were computed"))
    out = method(model, views(), torch.zeros(CLASSES))
    assert len(out.classes) == 0


class Own(nn.Module):
    """What other research code brings: features(x) and weight, nothing else."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.weight = nn.Parameter(torch.randn(CLASSES, 8) * 0.1 + 0.1)

    def features(self, x):
        return self.net(x)


@pytest.mark.parametrize("trainable", ["published", "head"])
def test_any_model_with_features_and_weight_works(trainable):
    model = Own()
    rib = ribseg.RIB(model, steps=3, lr=1e-3, margin=None, area_limit=None, trainable=trainable)
    out = rib(views(), LABELS, references(3))
    base = ribseg.cam(model, views(), LABELS)
    assert out.stopped is None
    assert not torch.allclose(out.maps[0], 3 * base.maps[0])


def test_gradients_are_had_inside_no_grad_but_not_inference_mode():
    rib = ribseg.RIB(classifier(), steps=2, lr=1e-3, margin=None, area_limit=None)
    with torch.no_grad():
        inside = rib(views(), LABELS)
    assert torch.equal(inside.maps[0], rib(views(), LABELS).maps[0])
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode=False"):
        rib(views(), LABELS)


def test_merge_maps_is_the_published_merge():
    maps = [torch.rand(2, 4, 6), torch.rand(2, 7, 11)]
    merged = ribseg.merge_maps(maps, (61, 90), classes=torch.tensor([0, 3]))
    resize = nn.functional.interpolate
    strided = sum(resize(m[None], (16, 23), mode="bilinear")[0] for m in maps)
    full = sum(resize(m[None], (64, 96), mode="bilinear")[0] for m in maps)[:, :61, :90]
    torch.testing.assert_close(merged.strided, strided / (strided.amax((1, 2), keepdim=True) + 1e-5))
    torch.testing.assert_close(merged.full, full / (full.amax((1, 2), keepdim=True) + 1e-5))
    assert merged.classes.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: ribseg.RIB(m, preset="mine"), ValueError, "official"),
        (lambda m: ribseg.RIB(m, trainable="all"), ValueError, "layer4"),
        (lambda m: ribseg.RIB(m, steps=-1), ValueError, "steps"),
        (lambda m: ribseg.RIB(Own(), trainable="layer4"), ValueError, "trunk"),
        (lambda m: ribseg.RIB(nn.Linear(2, 2)), TypeError, "features"),
        (lambda m: ribseg.RIB(m)([torch.zeros(1, 3, 8, 8)], LABELS), ValueError, r"\(2, 3, h, w\)"),
        (lambda m: ribseg.RIB(m)(views(), torch.zeros(9)), ValueError, r"\(5,\)"),
        (lambda m: ribseg.RIB(m)(views(), LABELS * 2), ValueError, "{0, 1}"),
        (lambda m: ribseg.RIB(m)(views()[:2], LABELS), ValueError, "loss_views"),
        (lambda m: ribseg.merge_maps([torch.zeros(1, 2, 2)], (8, 8)), ValueError, "classes"),
        (lambda m: ribseg.merge_maps([], (8, 8)), ValueError, "at least one"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(classifier())


def fake_adaptations(limit):
    """Adaptations of four images that stop once the rate exceeds `limit`."""
    return lambda lr, share=1: [
        Adaptation(None, None, 10, "area" if lr > limit and image > 0 else None) for image in range(4)
    ]


def test_rate_search_takes_the_largest_that_most_images_complete():
    found = find_rate(fake_adaptations(2e-3), 1e-5, 1.0)
    assert found.lr == pytest.approx(1e-3)
    assert [trial.completed for trial in found.trials][-2:] == [1.0, 0.25]
    assert found.trials[-1].lr == pytest.approx(3.16e-3)


def test_rate_search_leaves_images_out_that_stop_at_once():
    def adapt(lr, share=1):
        return [Adaptation(None, None, 1, "area"), *fake_adaptations(2e-3)(lr)]

    assert find_rate(adapt, 1e-5, 1.0, completed=0.9).lr == pytest.approx(1e-3)


def test_rate_search_says_when_nothing_can_be_found():
    with pytest.raises(ConfigError, match="area_limit"):
        find_rate(lambda lr, share=1: [Adaptation(None, None, 1, "area")], 1e-5, 1.0)
    with pytest.raises(ConfigError, match="low <= high"):
        find_rate(fake_adaptations(1.0), 1.0, 0.1)


def growing(factor, power=1, tried=None, first=1):
    """Adaptations of an image whose logit rises from 2 to 2 + factor * lr^power.

    In a part of the images it rises `first` times as much; `tried` notes rates and shares.
    """

    def adapt(lr, share=1):
        logits = (2.0, 2.0 + factor * lr**power * (first if share < 1 else 1))
        if tried is not None:
            tried.append((lr, share))
        return [Adaptation(None, None, 1, None, tuple(AdaptationStep(0, 0, 0, 1.0, y) for y in logits))]

    return adapt


def test_rate_search_by_growth_finds_the_rate_at_which_logits_grow_so_far():
    found = find_rate(growing(1000.0), 1e-5, 1.0, growth=5.0)  # 2 + 1000 lr = 10 at lr = .008
    assert found.lr == pytest.approx(8e-3, rel=0.05)
    assert found.trials[0].growth == pytest.approx(1.005)


@pytest.mark.parametrize("power", [0.7, 1, 1.4])
@pytest.mark.parametrize("first", [0.5, 1, 2])
def test_rate_search_by_growth_adapts_all_images_only_where_the_rate_is_nearly_known(power, first):
    tried = []
    found = find_rate(growing(1000.0, power, tried, first), 1e-6, 1.0, growth=2.2)
    assert found.lr == pytest.approx((2.4 / 1000) ** (1 / power), rel=0.05)
    whole = [share for _, share in tried if share == 1]
    assert len(whole) <= 2 if first != 1 else len(whole) == 1
    assert len(tried) - len(whole) <= 5


def test_rate_search_by_growth_turns_round_where_a_rate_is_too_strong():
    def adapt(lr, share=1):
        (one,) = growing(1000.0)(lr)
        return [one._replace(stopped="not_finite") if lr > 5e-3 else one]

    assert find_rate(adapt, 1e-6, 1.0, growth=2.2).lr == pytest.approx(2.4e-3, rel=0.05)


def test_growth_is_defined_where_logits_begin_below_zero():
    history = tuple(AdaptationStep(0, 0, 0, 1.0, logit) for logit in (-2.0, 4.0))
    rising = Adaptation(None, None, 1, None, history)
    assert growth_of([rising]) == 4.0
    assert growth_of([rising._replace(stopped="not_finite")]) == float("inf")
    assert growth_of([rising._replace(history=())]) != growth_of([rising._replace(history=())])  # NaN


@pytest.mark.parametrize(
    ("adapt", "message"),
    [
        (growing(1e9), "rate_search.low"),
        (growing(1e-9), "rate_search.high"),
        (fake_adaptations(1.0), "records no logits"),
    ],
)
def test_rate_search_by_growth_says_what_to_change(adapt, message):
    with pytest.raises(ConfigError, match=message):
        find_rate(adapt, 1e-5, 1.0, growth=5.0)


def test_the_history_has_the_classifiers_logit_of_each_step():
    model = classifier().eval()
    found = ribseg.RIB(model, **QUIET, lr=1e-3)(views(), LABELS)
    with torch.no_grad():
        expected = model(views()[0])[:, LABELS > 0].mean()
    assert len(found.history) == STEPS
    assert found.history[0].logit == pytest.approx(float(expected), rel=1e-4)
    assert found.history[-1].logit > found.history[0].logit
    assert ribseg.cam(model, views(), LABELS).history == ()


@pytest.mark.parametrize("pooling", [ribseg.GAP(), ribseg.GNDRP(0.4), ribseg.GNDRP(0.4, "kept", "paper")])
@pytest.mark.parametrize("preset", ["official", "paper"])
def test_references_change_no_bit_where_the_head_alone_learns(preset, pooling):
    """They share no class with the image, and its rows learn from its own classes alone."""
    settings = QUIET | {"trainable": "head", "lr": 1e-2, "preset": preset, "pooling": pooling}
    apart = [(images, labels * (1 - LABELS)) for images, labels in references()]
    assert all(labels.any() for _, labels in apart)
    rib = ribseg.RIB(classifier(), **settings)
    assert not rib.uses_references
    without = rib(views(), LABELS)
    for used in (False, True):  # they are passed over, but would count as little
        rib.uses_references = used
        with_them = rib(views(), LABELS, apart)
        for a, b in zip(with_them.maps, without.maps, strict=True):
            assert a.numpy().tobytes() == b.numpy().tobytes()


def test_references_with_a_class_of_the_image_count_there_too():
    rib = ribseg.RIB(classifier(), **QUIET, trainable="head", lr=1e-2)
    own = [(images, labels.maximum(LABELS)) for images, labels in references()]
    assert not torch.allclose(rib(views(), LABELS, own).maps[0], rib(views(), LABELS).maps[0], rtol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"trainable": "layer4"},
        {"trainable": "published"},
        {"loss": lambda logits, labels: -logits.sum()},
        {"pooling": lambda maps, labels: maps.softmax(1).mean((-2, -1))},
    ],
)
def test_references_are_used_wherever_they_may_count(settings):
    assert ribseg.RIB(classifier(), **{"trainable": "head", **settings}).uses_references


def test_gap_of_own_views_is_the_logit():
    model = classifier().eval()
    with torch.no_grad():
        torch.testing.assert_close(gap(model.class_maps(views()[0])), model(views()[0]), rtol=1e-4, atol=1e-5)


def test_a_loss_of_ones_own_takes_the_place_of_the_presets():
    settings = {"pooling": ribseg.GAP(), "steps": 3, "lr": 1e-3, "margin": None, "area_limit": None}
    usual = ribseg.RIB(classifier(), **settings)(views(), LABELS, references(3))
    same = ribseg.RIB(classifier(), loss=lambda y, t: -(t * y).sum(), **settings)
    other = ribseg.RIB(classifier(), loss=lambda y, t: (t * y).sum(), **settings)
    assert all(
        torch.equal(a, b) for a, b in zip(same(views(), LABELS, references(3)).maps, usual.maps, strict=True)
    )
    away = other(views(), LABELS, references(3))
    assert (away.maps[0].sum() < usual.maps[0].sum()).item()


BAD_LOSSES = {
    "got float": lambda y, t: 1.0,
    r"got shape \(2, 5\)": lambda y, t: y * t,
    "without a gradient": lambda y, t: (y * t).sum().detach(),
    "does not depend": lambda y, t: torch.ones((), requires_grad=True),
    "not finite": lambda y, t: y.log().sum(),
    "but ValueError: no": None,
}


def refuse(logits, labels):
    raise ValueError("no")


@pytest.mark.parametrize("message", BAD_LOSSES)
@pytest.mark.parametrize("preset", ["official", "paper"])
def test_a_loss_that_cannot_work_is_refused_at_once(message, preset):
    with torch.no_grad(), pytest.raises(ConfigError, match=f"loss: expected a finite scalar.*{message}"):
        ribseg.RIB(classifier(), preset=preset, loss=BAD_LOSSES[message] or refuse)
    with torch.inference_mode():
        ribseg.RIB(classifier(), loss=lambda y, t: (y * t).square().sum())
