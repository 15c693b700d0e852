r"""A method of your own: CAMs summed over random views of the image, added from outside the package.

    PYTHONPATH=examples python train.py experiment=demo \
        +methods.jittered._target_=own_method.JitteredCAM +methods.jittered.noise=0.1

It takes part in everything: tables, pictures, reports, refinement (refine.maps=jittered), segmenters
(segmenter.sources=[jittered]), sweeps (-m methods.jittered.noise=0.05,0.1). Its source is in the digest, so
an edit of this file makes its maps again.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

import ribseg
from ribseg.types import Adaptation, ViewMaps


class JitteredCAM:
    """The sum of the CAMs of noisy copies of the views.

    Args:
        classifier: a module with `features(x)` and `weight`.
        noise: deviation of the noise on the normalised pixels.
        copies: how many are summed.
    """

    def __init__(self, classifier: nn.Module, noise: float = 0.1, copies: int = 3) -> None:
        if noise < 0 or copies < 1:
            raise ValueError(f"expected noise >= 0 and copies >= 1, got {noise} and {copies}")
        self.classifier, self.noise, self.copies = classifier, noise, copies

    def __call__(self, views: Sequence[Tensor], labels: Tensor, generator: np.random.Generator) -> Adaptation:
        """See `ribseg.methods.base.Method`; the generator is a function of seed and image alone."""
        random = torch.Generator().manual_seed(int(generator.integers(2**63)))
        results = [
            ribseg.cam(self.classifier, [self._noisy(view, random) for view in views], labels)
            for _ in range(self.copies)
        ]
        sums = [torch.stack(same_view).sum(0) for same_view in zip(*(r.maps for r in results), strict=True)]
        classes = results[0].classes
        return Adaptation(ViewMaps(sums, classes), classes, steps=0, stopped=None)

    def _noisy(self, view: Tensor, random: torch.Generator) -> Tensor:
        return view + self.noise * torch.randn(view.shape, generator=random).to(view)
