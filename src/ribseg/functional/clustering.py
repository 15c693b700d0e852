"""K-means by cosine similarity, for local prototypes of classes (docs/method.md, section 3.7)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ribseg.checks import check_number


def cosine_kmeans(
    points: Tensor, number: int, generator: np.random.Generator, iterations: int = 100
) -> Tensor:
    """The means of clusters of points, each of which belongs to the mean that it has the highest cosine with.

    It begins with points that are drawn, and ends when no point changes its cluster. A cluster that loses all
    points goes on with the one that fits its own cluster least.

    Args:
        points: (N, D) float.
        number: of clusters; N if there are fewer points.
        generator: of the first means.
        iterations: largest number of steps.

    Returns:
        (min(number, N), D), the means of the points, which are not normalised.

    Raises:
        SettingError: `number` or `iterations` is no positive integer.
        ValueError: no points, or of another shape.

    >>> points = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    >>> cosine_kmeans(points, 2, np.random.default_rng(0)).sort(0).values
    tensor([[0., 0.],
            [2., 2.]])
    """
    check_number("number", number, low=1, whole=True)
    check_number("iterations", iterations, low=1, whole=True)
    if points.ndim != 2 or not len(points):
        raise ValueError(f"expected at least one point, as (N, D), got shape {tuple(points.shape)}")
    units, number = F.normalize(points), min(number, len(points))
    first = np.sort(generator.choice(len(points), number, replace=False))
    means = points[torch.from_numpy(first).to(points.device)]
    before: Tensor | None = None
    for _ in range(iterations):
        cosines, nearest = (units @ F.normalize(means).T).max(1)
        _fill_empty(nearest, cosines, number)
        if before is not None and torch.equal(nearest, before):
            break
        before = nearest
        members = F.one_hot(nearest, number).to(points.dtype)
        means = (members.T @ points) / members.sum(0)[:, None]
    return means


def _fill_empty(nearest: Tensor, cosines: Tensor, number: int) -> None:
    """Gives each cluster without points the point, of a cluster with several, that fits least; in place."""
    cosines = cosines.clone()
    for cluster in range(number):
        counts = torch.bincount(nearest, minlength=number)
        if counts[cluster] == 0:
            free = torch.where(counts[nearest] > 1, cosines, torch.inf)
            place = int(free.argmin())
            nearest[place], cosines[place] = cluster, torch.inf
