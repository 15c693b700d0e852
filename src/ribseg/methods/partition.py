"""What of a classifier RIB adapts, and what keeps its weights."""

from collections.abc import Callable
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from ribseg.checks import check_choice
from ribseg.methods.cam import features_of, head_of
from ribseg.types import Trainable

Features = Callable[[Tensor], Tensor]


class Partition(NamedTuple):
    """A classifier's `features` as two functions, one after the other: `features(x) = adapted(frozen(x))`.

    Attributes:
        frozen: images -> intermediate features. Its weights stay, so each view has to pass it only once.
        adapted: intermediate features -> (N, D, h, w) features. Its weights change in every step of RIB.
        parameters: those of `adapted`; the head's `weight` is not among them.
        layout: memory format that images should have.
    """

    frozen: Features
    adapted: Features
    parameters: list[nn.Parameter]
    layout: torch.memory_format


def partition(classifier: nn.Module, trainable: Trainable) -> Partition:
    """Divides a classifier into what stays as it is and what RIB adapts besides the head.

    Args:
        classifier: a module with `features(x)` and `weight`. One with a `trunk` and a `tail` (a list of
            stages), as `ribseg.Classifier` has them, is divided between two stages.
        trainable: what learns: "published" (the tail), "layer4" (its last stage) or "head" (none of it).

    Raises:
        ValueError: unknown `trainable` (a ConfigError), or one that needs stages which this classifier lacks.
        TypeError: no classifier.
    """
    check_choice("trainable", trainable, get_args(Trainable))
    weight, features = head_of(classifier), features_of(classifier)
    trunk, tail = getattr(classifier, "trunk", None), getattr(classifier, "tail", None)
    if isinstance(trunk, nn.Module) and tail is not None:
        stages = [trunk, *tail]
        cut = {"published": 1, "layer4": len(stages) - 1, "head": len(stages)}[trainable]
        frozen, adapted = nn.Sequential(*stages[:cut]), nn.Sequential(*stages[cut:])
        # Channels last is what the fast kernels of GPUs want; on CPUs the trunk gets a third faster by it.
        return Partition(frozen, adapted, list(adapted.parameters()), torch.channels_last)
    # Other modules get their images as they come: some take a layout for granted.
    if trainable == "head":
        return Partition(features, nn.Identity(), [], torch.preserve_format)
    if trainable == "layer4":
        raise ValueError(
            f'trainable="{trainable}" needs a classifier with trunk and tail (a list of stages), as '
            "ribseg.Classifier has them"
        )
    others = [p for p in classifier.parameters() if p is not weight and p.requires_grad]
    return Partition(nn.Identity(), features, others, torch.preserve_format)
