"""Splits a classifier into the frozen part and the part that RIB adapts."""

from collections.abc import Callable
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from ribseg.checks import check_choice
from ribseg.methods.cam import features_of, head_of
from ribseg.types import Trainable

Features = Callable[[Tensor], Tensor]


class Partition(NamedTuple):
    """A classifier's `features` as the composition of two functions: `features(x) = adapted(frozen(x))`.

    Attributes:
        frozen: images -> intermediate features. With constant weights: computed only once per view.
        adapted: intermediate features -> (N, D, h, w) features. Its weights change in every step of RIB.
        parameters: of `adapted`, without the head's `weight`.
        layout: memory format for the images.
    """

    frozen: Features
    adapted: Features
    parameters: list[nn.Parameter]
    layout: torch.memory_format


def partition(classifier: nn.Module, trainable: Trainable) -> Partition:
    """Splits a classifier into the frozen part and the part that RIB adapts in addition to the head.

    Args:
        classifier: a module with `features(x)` and `weight`. With `trunk` and `tail` (a list of stages), as
            `ribseg.Classifier` has them, it is split between two stages.
        trainable: the adapted part: "published" (the tail), "layer4" (its last stage) or "head" (nothing).
            The tail of a transformer is its last two blocks, the final norm with the second one.

    Raises:
        ValueError: unknown `trainable` (a ConfigError), or the classifier has no stages for it.
        TypeError: the classifier lacks `features` or `weight`.
    """
    check_choice("trainable", trainable, get_args(Trainable))
    weight, features = head_of(classifier), features_of(classifier)
    trunk, tail = getattr(classifier, "trunk", None), getattr(classifier, "tail", None)
    if isinstance(trunk, nn.Module) and tail is not None:
        stages = [trunk, *tail]
        cut = {"published": 1, "layer4": len(stages) - 1, "head": len(stages)}[trainable]
        frozen, adapted = nn.Sequential(*stages[:cut]), nn.Sequential(*stages[cut:])
        # Channels last is faster on GPUs, and a third faster for the trunk on CPUs.
        return Partition(frozen, adapted, list(adapted.parameters()), torch.channels_last)
    # Other modules may assume a layout, so their images are passed unchanged.
    if trainable == "head":
        return Partition(features, nn.Identity(), [], torch.preserve_format)
    if trainable == "layer4":
        raise ValueError(
            f'trainable="{trainable}" needs a classifier with trunk and tail (a list of stages), as '
            'ribseg.Classifier has them; others adapt the head alone, by trainable="head" '
            '(rib.trainable=head), or all weights that require gradients, by "published"'
        )
    others = [p for p in classifier.parameters() if p is not weight and p.requires_grad]
    return Partition(nn.Identity(), features, others, torch.preserve_format)
