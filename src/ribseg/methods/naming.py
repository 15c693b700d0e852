"""Class names and indices, and the classes that a classifier predicts for an image."""

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ribseg.checks import check_number
from ribseg.errors import ConfigError
from ribseg.functional.cam import class_maps
from ribseg.functional.state import evaluating
from ribseg.methods.cam import features_of, head_of
from ribseg.models.imagenet import imagenet_names

SHOWN = 8  # names in a message
PROBABLE = 0.1  # lowest probability of predicted classes with a softmax head


def indices_of(labels: Sequence[str | int], names: Sequence[str] | None, number: int) -> list[int]:
    """The indices of classes.

    Args:
        labels: names, case-insensitive, or indices starting at 0. For names that list synonyms ("tabby, tabby
            cat") one synonym is enough.
        names: of all classes; None if unknown.
        number: C.

    Raises:
        ConfigError: no label, or one that is unknown or ambiguous.

    >>> indices_of(["Dog", 0], ["cat", "dog"], 2)
    [1, 0]
    """
    if isinstance(labels, str) or not len(labels):
        raise ConfigError(f'expected a list of classes, such as labels=["dog"], got {labels!r}')
    for label in labels:
        if not isinstance(label, str):
            check_number("labels", label, low=0, high=number - 1, whole=True)
    return [_index_of_name(label, names) if isinstance(label, str) else int(label) for label in labels]


def _index_of_name(label: str, names: Sequence[str] | None) -> int:
    if names is None:
        raise ConfigError(f"the classifier has no names of classes: pass indices instead of {label!r}")
    wanted = label.strip().lower()
    whole = [index for index, name in enumerate(names) if name.lower() == wanted]
    synonyms = [
        i for i, name in enumerate(names) if wanted in [part.strip() for part in name.lower().split(",")]
    ]
    found = whole or synonyms
    if len(found) == 1:
        return found[0]
    similar = [names[i] for i in found] or [name for name in names if wanted and wanted in name.lower()]
    similar = similar or difflib.get_close_matches(label, names, n=SHOWN, cutoff=0.4) or list(names)
    more = "" if len(similar) <= SHOWN else f" and {len(similar) - SHOWN} more"
    what = "matches several classes" if found else "is not a class of this classifier"
    raise ConfigError(f"{label!r} {what}; there is {'; '.join(similar[:SHOWN])}{more}")


@torch.no_grad()
def predicted_classes(classifier: nn.Module, view: Tensor, top: int) -> list[int]:
    """Indices of the classes that a classifier predicts, ascending; at least the most probable one.

    Args:
        classifier: any module with `features(x)` and `weight`. With ImageNet's class names it is treated as a
            softmax classifier with a probability threshold of 0.1, else as sigmoid with a threshold of 0.5.
        view: (2, 3, h, w), image and mirror image, normalised.
        top: largest number of classes.

    Raises:
        ConfigError: `top` is not a positive integer.
    """
    check_number("top", top, low=1, whole=True)
    with evaluating(classifier):
        logits = class_maps(features_of(classifier)(view), head_of(classifier)).float().mean((0, 2, 3))
    softmax = getattr(classifier, "classes", None) == imagenet_names()
    probabilities = logits.softmax(0) if softmax else logits.sigmoid()
    best = probabilities.topk(min(top, len(probabilities)))
    lowest = PROBABLE if softmax else 0.5
    found = [i for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True) if p >= lowest]
    return sorted(found or best.indices[:1].tolist())
