"""LPCAM: maps by the similarity of local features to prototypes of their class (docs/method.md, section 3.7).

Chen, Sun: *Extracting Class Activation Maps from Non-Discriminative Features as well*, CVPR 2023, section 3.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ribseg.checks import SettingError, check_number
from ribseg.functional.cam import normalize, resize, resize_and_sum
from ribseg.functional.clustering import cosine_kmeans
from ribseg.functional.state import evaluating
from ribseg.methods.cam import cam, checked, features_of, head_of, without_classes
from ribseg.types import Adaptation, TrainingImages, ViewMaps


class LPCAM:
    """Maps of a trained classifier that see what its head does not, by clusters of local features.

    `prepare` takes the features of training images of each class, apart where its CAM is above `foreground`
    and where it is not, and clusters both by k-means. Of the former means those that the head gives to the
    class are its prototypes, of the latter those that it might are its context. The map of an image is, at
    each location, the mean cosine of its feature to the prototypes minus that to the context, rectified.

    The mean of cosines is the product with a mean of vectors of length 1, so that one vector for each class,
    `directions`, is all that is kept.

    Args:
        classifier: any module with `features(x)` and `weight`.
        prototypes: K, clusters for each class and side.
        foreground: of the normalised CAM, in [0, 1].
        keep: a mean is a prototype if its softmax probability of the class is above it; the one with the
            highest is one in any case.
        context_low: a mean is context if its probability of the class is above it,
        context_high: and below this.
        images: largest number of training images for each class.
        locations: largest number of locations of an image on each side.
        iterations: largest number of steps of k-means.

    Raises:
        SettingError: an argument is out of range.
    """

    def __init__(
        self,
        classifier: nn.Module,
        prototypes: int = 12,
        foreground: float = 0.1,
        keep: float = 0.9,
        context_low: float = 0.05,
        context_high: float = 0.9,
        images: int = 200,
        locations: int = 100,
        iterations: int = 100,
    ) -> None:
        counts = {"prototypes": prototypes, "images": images, "locations": locations}
        for name, value in (counts | {"iterations": iterations}).items():
            check_number(name, value, low=1, whole=True)
        shares = {"foreground": foreground, "keep": keep}
        for name, share in (shares | {"context_low": context_low, "context_high": context_high}).items():
            check_number(name, share, 0, 1)
        if context_low > context_high:
            raise SettingError(
                f"context_low: expected at most context_high={context_high}, got {context_low}"
            )
        self.classifier, self.head, self.features = classifier, head_of(classifier), features_of(classifier)
        self.prototypes, self.foreground, self.keep = prototypes, foreground, keep
        self.context = context_low, context_high
        self.images, self.locations, self.iterations = images, locations, iterations
        self.directions: Tensor | None = None

    @torch.no_grad()
    def prepare(self, images: TrainingImages, generator: np.random.Generator) -> dict[str, Tensor]:
        """Finds the prototypes of all classes; see `ribseg.methods.base.Method`.

        Returns:
            "directions" (C, D) float32, and "kept" (C, 2) int64, the numbers of prototypes and of contexts. A
            class without training images has the head's row as its only prototype.
        """
        found = [self._direction(number, images, generator) for number in range(len(self.head))]
        return {
            "directions": torch.stack([direction for direction, _ in found]).cpu(),
            "kept": torch.tensor([kept for _, kept in found]),
        }

    def passes_per_image(self, labels: Tensor) -> int:
        """How often `prepare` looks at an image, by (N, C) labels."""
        return int(labels.sum(0).clamp(max=self.images).sum())

    def use(self, state: Mapping[str, Tensor]) -> None:
        """Takes what `prepare` has returned.

        Raises:
            ValueError: it is of another classifier.
        """
        expected = tuple(self.head.flatten(1).shape)
        if tuple(state["directions"].shape) != expected:
            raise ValueError(
                f"expected directions of shape {expected}, got {tuple(state['directions'].shape)}: they are "
                "of another classifier"
            )
        self.directions = state["directions"]

    @torch.no_grad()
    def __call__(self, *, views: Sequence[Tensor], labels: Tensor) -> Adaptation:
        """The maps of one image; see `ribseg.methods.base.Method`.

        Raises:
            ValueError: wrong shapes of views or labels.
            RuntimeError: called before `prepare` and `use`.
        """
        if self.directions is None:
            raise RuntimeError(
                "LPCAM needs prototypes: call method.use(method.prepare(images, generator)) first"
            )
        present, maps = checked(views, labels, len(self.head)), []
        if not len(present):
            return without_classes(views)
        directions = self.directions[present].to(self.head.device)
        with evaluating(self.classifier):
            for view in views:
                features = self.features(view.to(self.head.device)).float()
                merged = F.normalize(features[0] + features[1].flip(-1), dim=0)
                maps.append(torch.einsum("dhw,kd->khw", merged, directions).relu())
        return Adaptation(ViewMaps(maps, present), present, 0, None)

    def _direction(
        self, number: int, images: TrainingImages, generator: np.random.Generator
    ) -> tuple[Tensor, tuple[int, int]]:
        """The (D,) direction of a class, and its numbers of prototypes and contexts."""
        prototypes, contexts = (
            cosine_kmeans(points, self.prototypes, generator, self.iterations) if len(points) else points
            for points in self._sampled(number, images, generator)
        )
        if len(prototypes):
            share = self._probabilities(prototypes)[:, number]
            prototypes = prototypes[(share > self.keep) | (share == share.max())]
        else:
            prototypes = self.head.detach().flatten(1)[number : number + 1]
        low, high = self.context
        share = self._probabilities(contexts)[:, number]
        contexts = contexts[(share > low) & (share < high)]
        direction = F.normalize(prototypes).mean(0)
        if len(contexts):
            direction = direction - F.normalize(contexts).mean(0)
        return direction.float(), (len(prototypes), len(contexts))

    def _sampled(
        self, number: int, images: TrainingImages, generator: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """(N, D) features of some images where the CAM of a class is strong, and (M, D) where it is weak."""
        sides: tuple[list[Tensor], list[Tensor]] = ([], [])
        labels = F.one_hot(torch.tensor(number), len(self.head))
        chosen = images.labels[:, number].nonzero().flatten().cpu().numpy()
        for index in generator.permutation(chosen)[: self.images]:
            views = images.views(int(index))
            with evaluating(self.classifier):
                features = self.features(views[0][:1].to(self.head.device)).float()[0]
            size = (features.shape[1], features.shape[2])
            strong = resize(self._cam(views, labels), size)[0] > self.foreground
            for side, where in zip(sides, (strong, ~strong), strict=True):
                places = where.flatten().nonzero().flatten().cpu().numpy()
                few = np.sort(generator.permutation(places)[: self.locations])
                side.append(features.flatten(1).T[torch.from_numpy(few).to(features.device)])
        empty = self.head.new_zeros(0, self.head.shape[1])
        return torch.cat([empty, *sides[0]]), torch.cat([empty, *sides[1]])

    def _cam(self, views: Sequence[Tensor], labels: Tensor) -> Tensor:
        """(1, h, w) CAM of a class over all views, normalised, at the size of the largest one's features."""
        maps = cam(self.classifier, views, labels).maps
        largest = max(maps, key=lambda view: view.shape[-1])
        return normalize(resize_and_sum(maps, (largest.shape[1], largest.shape[2])))

    def _probabilities(self, means: Tensor) -> Tensor:
        """(K, D) -> (K, C): the softmax of the head."""
        return (means @ self.head.detach().flatten(1).T.float()).softmax(1)
