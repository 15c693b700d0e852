"""AdvCAM: maps summed over an image that climbs towards its class (docs/method.md, section 3.5).

Lee, Kim, Yoon: *Anti-Adversarially Manipulated Attributions for Weakly and Semi-Supervised Semantic
Segmentation*, CVPR 2021. RIB changes the classifier for the image, AdvCAM the image for the classifier.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ribseg.checks import check_number, check_numbers
from ribseg.functional.cam import class_maps
from ribseg.functional.state import autocast_without_cache, evaluating, restored
from ribseg.methods.cam import checked, features_of, head_of, without_classes
from ribseg.types import Adaptation, ViewMaps

EPS = 1e-12  # of the released program, against division by 0
SHORT = 5  # steps of a short view at 5 to 10 steps, as in the released program


class AdvCAM:
    """Localization maps by anti-adversarial climbing, as the released program computes them.

    In each step the image is moved along the gradient of its class's logit, minus the other classes' logits,
    minus `weight` times the change of the map where the map is strong already. The maps of all steps are
    summed. Each present class has an image of its own.

    Args:
        classifier: any module with `features(x)` and `weight`; its features must be differentiable with
            respect to the image.
        steps: T, number of maps that are summed, at least 1.
        step_size: xi, change of the normalised image's value with the largest gradient.
        weight: lambda of the regularization, at least 0.
        threshold: tau in [0, 1], of the map divided by its maximum: above it the change is penalised.
        short_views: places of the views with half as many steps; in the released program that at scale 0.5.
        classes_at_once: number of classes in one batch; more need as many times the memory.

    Raises:
        SettingError: a setting is out of range.
    """

    def __init__(
        self,
        classifier: nn.Module,
        steps: int = 27,
        step_size: float = 0.08,
        weight: float = 7.0,
        threshold: float = 0.5,
        short_views: Sequence[int] = (1,),
        classes_at_once: int = 1,
    ) -> None:
        check_number("steps", steps, low=1, whole=True)
        check_number("step_size", step_size, low=0)
        check_number("weight", weight, low=0)
        check_number("threshold", threshold, 0, 1)
        if short_views:
            check_numbers("short_views", short_views, low=0, whole=True)
        check_number("classes_at_once", classes_at_once, low=1, whole=True)
        self.classifier, self.head, self.features = classifier, head_of(classifier), features_of(classifier)
        self.steps, self.step_size, self.weight, self.threshold = steps, step_size, weight, threshold
        self.short_views, self.classes_at_once = tuple(short_views), classes_at_once

    def __call__(self, *, views: Sequence[Tensor], labels: Tensor) -> Adaptation:
        """The maps of one image, summed over all steps; see `ribseg.methods.base.Method`."""
        return self.trace(views=views, labels=labels)[-1]

    def trace(self, *, views: Sequence[Tensor], labels: Tensor) -> list[Adaptation]:
        """The results after step 0, 1, ..; the last one is that of `__call__`.

        Raises:
            ValueError: wrong shapes of views or labels.
            RuntimeError: called under `torch.inference_mode`, or the features have no gradient with respect
                to the image.
        """
        classes = checked(views, labels, len(self.head))
        if not len(classes):
            return [without_classes(views)]
        model = self.classifier
        with evaluating(model), restored((), model), torch.enable_grad(), autocast_without_cache():
            series = [self._sums(view, classes, self.steps_of(number)) for number, view in enumerate(views)]
        results = []
        for k in range(1, max(map(len, series)) + 1):
            maps = [sums[min(k, len(sums)) - 1] for sums in series]  # short views have ended before
            results.append(Adaptation(ViewMaps(maps, classes), classes, k, None))
        return results

    def steps_of(self, view: int) -> int:
        """Number of steps of a view: all, or about half of them for `short_views`."""
        if view not in self.short_views:
            return self.steps
        return self.steps // 2 if self.steps > 2 * SHORT else min(self.steps, SHORT)

    def _sums(self, view: Tensor, classes: Tensor, steps: int) -> list[Tensor]:
        """The (K, h', w') maps of a view, summed up to each step."""
        view, chunks = view.to(self.head.device), classes.to(self.head.device).split(self.classes_at_once)
        parts = [list(self._climb(view, chunk, steps)) for chunk in chunks]
        return list(torch.stack([torch.cat(step) for step in zip(*parts, strict=True)]).cumsum(0))

    def _climb(self, view: Tensor, classes: Tensor, steps: int) -> Iterator[Tensor]:
        """Yields the (K, h', w') maps of some classes at each step, while their images climb."""
        images, first = view.repeat(len(classes), 1, 1, 1, 1), None
        for step in range(steps):
            images.requires_grad_(step < steps - 1)  # the last change would not be seen
            raw = class_maps(self.features(images.flatten(0, 1)), self.head).unflatten(0, (-1, 2)).float()
            found = self._maps(raw, classes)
            first = found.detach() if first is None else first
            yield found.detach()
            if step < steps - 1:
                images = climbed(images, self._gradient(images, raw, found, first, classes), self.step_size)

    def _maps(self, raw: Tensor, classes: Tensor) -> Tensor:
        """(K, 2, C, h, w) class maps -> (K, h, w): Grad-CAM of each class, its mirror image merged in.

        The gradient of a class's summed positive map is the head's row where the map is positive. The
        released program divides its sum over an image's locations by the number of its positive values in
        both images.
        """
        own = raw[torch.arange(len(classes)), :, classes].relu()
        positive = (own.detach() > 0).sum((2, 3))  # locations, of the image and the mirror image
        weights = (self.head[classes].flatten(1) > 0).sum(1)
        share = positive / (positive.sum(1) * weights + EPS)[:, None]
        scaled = own * share[..., None, None]
        return scaled[:, 0] + scaled[:, 1].flip(-1)

    def _gradient(self, images: Tensor, raw: Tensor, maps: Tensor, first: Tensor, classes: Tensor) -> Tensor:
        """The gradient of what the images climb, with respect to them: (K, 2, 3, h, w)."""
        logits = raw.relu().mean((3, 4)).sum(1)  # (K, C)
        gain = 2 * logits[torch.arange(len(classes)), classes] - logits.sum(1)
        strong = maps.detach() / maps.detach().amax((1, 2), keepdim=True) > self.threshold
        change = ((maps - first).abs() * strong).sum((1, 2))
        (gradient,) = torch.autograd.grad((gain - self.weight * change).sum(), images)
        return gradient


@torch.no_grad()
def climbed(images: Tensor, gradient: Tensor, step_size: float) -> Tensor:
    """(K, 2, 3, h, w) images, moved along their gradients, within their own ranges of values."""
    dims = tuple(range(1, images.ndim))
    largest = gradient.abs().amax(dims, keepdim=True) + EPS
    low, high = images.amin(dims, keepdim=True), images.amax(dims, keepdim=True)
    return (images + step_size * gradient / largest).clamp(low, high)
