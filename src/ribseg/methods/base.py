"""The interface of methods, which compute localization maps of an image from a trained classifier.

A custom method in the user's own file is added in the configuration (see `examples/own_method.py`):

    python train.py experiment=... +methods.mine._target_=my_file.MyMethod +methods.mine.strength=2
"""

import inspect
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Protocol, cast

from torch import Tensor

from ribseg.types import Adaptation


class Method(Protocol):
    """Computes the localization maps of one image.

    It is built once with `classifier=` and its settings, and called for each image with the keyword arguments
    `views`, `labels`, and `references` and `generator` if its signature has them. A function of (classifier,
    views, labels) works, too.

    Optional attributes: `trace`, called as the method itself, returns the results after each step, the last
    of which is that of the call itself; the report shows them with a slider. `updates`: largest number of
    reference batches; None is unlimited. `uses_references`: False if references that share no class with the
    image do not change the maps; then none are loaded. `targets(labels, generator)`: the labels to adapt to,
    if not those of the image; references then share no class with them. `network`: a module of the method's
    own, which is moved to the device. A method with an argument `classes` is built with the names of the
    classes. `prepare(images, generator)`, called once with `ribseg.types.TrainingImages`, returns named
    tensors, which are kept; `use(tensors)` takes them before the first image. `passes_per_image(labels)`:
    how often `prepare` looks at an image, by the (N, C) labels, for the estimate of the remaining time.
    """

    def __call__(self, *, views: Sequence[Tensor], labels: Tensor, **given: Any) -> Adaptation:
        """Returns the maps of one image; must not change the classifier.

        Args:
            views: (2, 3, h_s, w_s) float tensors, the image at each of `data.scales` and its mirror image.
            labels: (C,) in {0, 1}.
            given: `references`, an iterable of (images (B, 3, S, S), labels (B, C)) that share no class with
                the image, or of (None, None) if there are none; only with a setting `references`.
                `generator`, a `numpy.random.Generator` determined by seed, method and image id.

        Returns:
            Maps per view, non-negative, not normalised; see `ribseg.types.Adaptation`.
        """


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function or class accepts a keyword argument of that name."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # functions written in C have no signature
        return True
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def bind(factory: Callable[..., Any], classifier: Any, classes: Sequence[str] | None = None) -> Method:
    """Binds a method to a classifier.

    Args:
        factory: a class, instantiated with `classifier=`; or a function, called with `classifier=` for every
            image; or a `functools.partial` of one with settings.
        classifier: a module with `features(x)` and `weight`; None for a method that needs none.
        classes: their names, for a method with an argument `classes` that has not been given.
    """
    target, known = (factory.func, factory.keywords) if isinstance(factory, partial) else (factory, {})
    given: dict[str, Any] = {"classifier": classifier}
    if classes is not None and "classes" not in known and "classes" in _named(target):
        given["classes"] = tuple(classes)
    return cast(Method, factory(**given) if isinstance(target, type) else partial(factory, **given))


def _named(function: Callable[..., Any]) -> Collection[str]:
    """The names of a function's parameters; none for functions written in C, which have no signature."""
    try:
        return inspect.signature(function).parameters
    except ValueError:
        return ()
