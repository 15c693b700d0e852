"""What a method is: anything that makes the localization maps of an image out of a trained classifier.

A method is added by the configuration, in one file of the user's own (see `examples/own_method.py`):

    python train.py experiment=... +methods.mine._target_=my_file.MyMethod +methods.mine.strength=2
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, cast

from torch import Tensor

from ribseg.types import Adaptation


class Method(Protocol):
    """Makes the maps of one image.

    It is built once with `classifier=` and its settings, and called with keywords for each image: `views`,
    `labels`, and those of the others that it names. A function of (classifier, views, labels) will do, too.

    Four attributes are optional. `trace`, called as the method itself: a list of the results after each of
    its steps, for pictures. `updates`: how many batches of references it takes at most; without it they
    come as long as it asks. `uses_references`: False if it knows that those which share no class with the
    image would not change its maps; none are loaded then. `targets(labels, generator)`: the labels that it
    adapts to, where these are not those of the image; references then share no class with them.
    """

    def __call__(self, *, views: Sequence[Tensor], labels: Tensor, **given: Any) -> Adaptation:
        """The maps of one image; the classifier must be left exactly as it was.

        Args:
            views: (2, 3, h_s, w_s) float tensors, the image at each of `data.scales` and its mirror image.
            labels: (C,) in {0, 1}.
            given: `references`, an iterable of (images (B, 3, S, S), labels (B, C)) that share no class with
                the image, or of (None, None) where there are none; only with a setting `references`.
                `generator`, a `numpy.random.Generator` that is a function of seed, method and image id.

        Returns:
            Maps per view, at least zero, not normalised; see `ribseg.types.Adaptation`.
        """


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function or class can be called with a keyword argument of that name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # of a function written in C nothing is known
        return True
    return any(p.name == name or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def bind(factory: Callable[..., Any], classifier: Any) -> Method:
    """The method of a classifier.

    Args:
        factory: a class, which is built with `classifier=`, or a function, which is called with it for every
            image; or a `functools.partial` of one, which holds the settings.
        classifier: a module with `features(x)` and `weight`.
    """
    target = factory.func if isinstance(factory, partial) else factory
    if isinstance(target, type):
        return cast(Method, factory(classifier=classifier))
    return cast(Method, partial(factory, classifier=classifier))
