"""Pooling against the released rule, one class at a time."""

import math
import pickle

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

import ribseg
from ribseg.functional import gap, generalized_mean, global_max, gndrp, log_sum_exp, top_k
from ribseg.methods.pooling import PER_CLASS, GeneralizedMean, GlobalMax, LogSumExp, TopK


def released_pooling(maps, labels, threshold, classes=None):
    """The released program's GNDRP as docs/method.md, section 3.1, tells it, one class at a time."""
    rows, channels, height, width = maps.shape
    out = torch.zeros(rows, channels, dtype=maps.dtype)
    for n in range(rows):
        for c in range(channels):
            m = maps[n, c]
            masked = labels[n, c] > 0 and (classes is None or c < classes)
            keep = (m / m.max()).detach() < threshold if masked else torch.ones_like(m, dtype=torch.bool)
            out[n, c] = (m * keep).sum() / (height * width)
    return out


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 25, 5, 7, generator=generator, dtype=torch.float64)


@pytest.fixture
def labels():
    return (torch.rand(3, 25, generator=torch.Generator().manual_seed(1)) > 0.7).float()


def test_gap_is_the_mean(maps):
    torch.testing.assert_close(gap(maps), maps.mean((2, 3)))


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.6, 1.0])
def test_official_rule_equals_the_slow_loop(maps, labels, threshold):
    torch.testing.assert_close(gndrp(maps, labels, threshold), released_pooling(maps, labels, threshold))


def test_class_limit_is_the_released_defect(maps, labels):
    limited = gndrp(maps, labels, 0.4, num_masked_classes=20)
    torch.testing.assert_close(limited, released_pooling(maps, labels, 0.4, classes=20))
    torch.testing.assert_close(limited[:, 20:], gap(maps)[:, 20:])
    assert not torch.equal(limited, gndrp(maps, labels, 0.4))


def test_negative_maximum_keeps_nothing_officially_and_everything_on_paper(labels):
    maps, target = -torch.rand(1, 1, 3, 3) - 0.1, torch.ones(1, 1)
    assert gndrp(maps, target) == 0
    torch.testing.assert_close(gndrp(maps, target, rule="paper", divisor="kept"), gap(maps))


def test_zero_maps_stay_finite():
    for rule in ("official", "paper"):
        for divisor in ("all", "kept"):
            assert gndrp(torch.zeros(1, 1, 2, 2), torch.ones(1, 1), rule=rule, divisor=divisor) == 0


def test_kept_divides_by_kept_locations():
    maps = torch.tensor([[[[10.0, 1.0, 2.0, -3.0]]]])
    target = torch.ones(1, 1)
    assert gndrp(maps, target, 0.4, "kept") == 0.0
    assert gndrp(maps, target, 0.15, "kept") == -1.0
    assert gndrp(maps, target, 0.15, "all") == -0.5


def test_paper_keeps_the_threshold_itself():
    maps = torch.tensor([[[[10.0, 4.0]]]])
    assert gndrp(maps, torch.ones(1, 1), 0.4, rule="paper") == 2.0
    assert gndrp(maps, torch.ones(1, 1), 0.4, rule="official") == 0.0


def test_mask_carries_no_gradient():
    maps = torch.tensor([[[[2.0, 0.5]]]], requires_grad=True)
    gndrp(maps, torch.ones(1, 1)).sum().backward()
    assert maps.grad.tolist() == [[[[0.0, 0.5]]]]


def test_classes_wrap_the_functions(maps, labels):
    assert torch.equal(ribseg.GAP()(maps, labels), gap(maps))
    pooling = ribseg.GNDRP(0.3, divisor="kept", rule="paper")
    assert torch.equal(pooling(maps, labels), gndrp(maps, labels, 0.3, "kept", "paper"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.2}, r"\[0, 1\]"),
        ({"divisor": "some"}, "kept"),
        ({"rule": "mine"}, "official"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ribseg.GNDRP(**arguments)
    with pytest.raises(ValueError, match=message):
        gndrp(torch.ones(1, 1, 2, 2), torch.ones(1, 1), **arguments)


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(N, C, h, w\)"):
        gap(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"\(1, 2\)"):
        gndrp(torch.ones(1, 2, 3, 3), torch.ones(1, 3))


def one_at_a_time(maps, pool):
    """A rule applied to the values of one class of one row after the other, as a list of numbers."""
    rows, channels = maps.shape[:2]
    pooled = [[pool(maps[n, c].flatten().tolist()) for c in range(channels)] for n in range(rows)]
    return torch.tensor(pooled, dtype=maps.dtype)


def mean(values):
    return sum(values) / len(values)


SLOW = {
    GlobalMax(): max,
    LogSumExp(2.0): lambda values: math.log(mean([math.exp(2 * x) for x in values])) / 2,
    TopK(0.3): lambda values: mean(sorted(values)[-round(0.3 * len(values)) :]),
    GeneralizedMean(3.0): lambda values: mean([max(x, 1e-6) ** 3 for x in values]) ** (1 / 3),
}


@pytest.mark.parametrize("pooling", SLOW, ids=repr)
def test_the_others_equal_their_slow_loops(maps, labels, pooling):
    torch.testing.assert_close(pooling(maps, labels), one_at_a_time(maps, SLOW[pooling]))


def test_the_others_lie_between_mean_and_maximum(maps):
    positive = maps.exp()
    for pooled in (log_sum_exp(positive), top_k(positive), generalized_mean(positive)):
        assert (gap(positive) <= pooled).all()
        assert (pooled <= global_max(positive)).all()
    torch.testing.assert_close(log_sum_exp(positive, 1e-6), gap(positive), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(top_k(positive, 1.0), gap(positive))
    torch.testing.assert_close(top_k(positive, 1e-9), global_max(positive))
    torch.testing.assert_close(generalized_mean(positive, 1.0), gap(positive))


def test_large_values_stay_finite():
    assert log_sum_exp(torch.full((1, 1, 2, 2), 1e4)) == 1e4
    assert generalized_mean(torch.full((1, 1, 2, 2), -1.0)) == pytest.approx(1e-6)


@pytest.mark.parametrize("pooling", [kind() for kind in PER_CLASS], ids=repr)
def test_each_class_is_pooled_without_the_others(maps, labels, pooling):
    """What `PER_CLASS` promises, and with it that references may be left out where the head alone learns."""
    changed = maps.clone()
    changed[:, 1:] += 1
    assert torch.equal(pooling(maps, labels)[:, 0], pooling(changed, labels)[:, 0])


@pytest.mark.parametrize("kind", [LogSumExp, TopK, GeneralizedMean])
def test_their_arguments_have_ranges(kind):
    with pytest.raises(ValueError, match="expected a number > 0"):
        kind(0)


@pytest.mark.parametrize("pooling", [kind() for kind in PER_CLASS], ids=repr)
def test_a_pooling_is_what_its_settings_are(pooling):
    assert pickle.loads(pickle.dumps(pooling)) == pooling  # noqa: S301
    assert repr(pooling).startswith(f"{type(pooling).__name__}(")
    with pytest.raises(AttributeError):
        pooling.threshold = 1.0  # the settings are checked once


def test_hydra_hands_a_pooling_on_as_it_is():
    pooling = ribseg.GNDRP(0.3)
    node = OmegaConf.create({"_target_": "builtins.dict"})
    assert instantiate(node, pooling=pooling)["pooling"] is pooling
