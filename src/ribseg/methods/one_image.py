"""A method on one image after the other, with references and random generators of its own."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from ribseg.methods.base import Method, takes
from ribseg.seeds import rng
from ribseg.types import Adaptation, Batch

References = Callable[[str, Tensor, int], Iterator[Batch]]
UNLIMITED = 10**9  # number of reference batches for a method without `updates`


class OneImage:
    """A method with what it takes for an image: references, and a random generator.

    Args:
        method: bound to a classifier, see `ribseg.methods.base.Method`.
        references: (image id, labels, number) -> batches of reference images; None: no references.
        name: of the method; its random generators are determined by seed, name and image id.
        seed: of the random generators.
    """

    def __init__(
        self, method: Method, references: References | None = None, name: str = "", seed: int = 0
    ) -> None:
        self.method, self.name, self.seed = method, name, seed
        self.taken = [name for name in ("references", "generator") if takes(method, name)]
        self.references = references if getattr(method, "uses_references", True) else None

    def localize(self, image_id: str, views: list[Tensor], labels: Tensor) -> Adaptation:
        """Returns the maps of one image, not normalised; see `ribseg.methods.base.Method`."""
        return self.method(views=views, labels=labels, **self.given(image_id, labels))

    def trace(self, image_id: str, views: list[Tensor], labels: Tensor) -> list[Adaptation]:
        """Returns the results after each step of a method that has a `trace`."""
        trace: Callable[..., list[Adaptation]] = self.method.trace  # type: ignore[attr-defined]
        return trace(views=views, labels=labels, **self.given(image_id, labels))

    def given(self, image_id: str, labels: Tensor) -> dict[str, Any]:
        """Returns what the method takes besides views and labels: references and generator."""
        generator = partial(rng, self.seed, self.name.replace("_", " "), image_id)
        given: dict[str, Any] = {"generator": generator()} if "generator" in self.taken else {}
        if "references" in self.taken and self.references is not None:
            targets = getattr(self.method, "targets", None)
            chosen = labels if targets is None else targets(labels, generator())
            number = getattr(self.method, "updates", None)
            given["references"] = self.references(image_id, chosen, UNLIMITED if number is None else number)
        return given
