"""A pooling and a loss of your own, for RIB: added from outside the package.

    PYTHONPATH=examples python train.py experiment=demo pooling=gap pooling._target_=own_pooling.TopShare \
        +pooling.share=0.2

A pooling is called with class maps (N, C, h, w) and labels (N, C), and returns logits (N, C).
"""

from torch import Tensor


class TopShare:
    """The mean of the highest values of each class map.

    Args:
        share: of the locations that are averaged, in (0, 1].
    """

    def __init__(self, share: float = 0.2) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"expected share in (0, 1], got {share}")
        self.share = share

    def __call__(self, maps: Tensor, labels: Tensor) -> Tensor:
        """(N, C, h, w) class maps and (N, C) labels in {0, 1} -> (N, C) logits."""
        flat = maps.flatten(2)
        return flat.topk(max(1, round(self.share * flat.shape[-1]))).values.mean(-1)
