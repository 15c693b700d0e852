"""The norm that networks have between average pooling and head, so that class maps have it too."""

from typing import Any

from torch import Tensor, nn


class PooledLayerNorm(nn.LayerNorm):
    """The features whose average is the LayerNorm of the average, so that `w_c . f` are maps of its logits.

    Each location is centred over the channels, and divided by the deviation of the average of all locations.

    Args:
        norm: a LayerNorm over D channels, whose weights are taken over.
        prefix: number of class and register tokens before the locations, which the average leaves out.

    >>> import torch
    >>> norm, tokens = nn.LayerNorm(8), torch.randn(2, 1 + 12, 8)
    >>> found = PooledLayerNorm(norm, prefix=1)(tokens)[:, 1:].mean(1)
    >>> torch.allclose(found, norm(tokens[:, 1:].mean(1)), atol=1e-5)
    True
    """

    def __init__(self, norm: nn.LayerNorm, prefix: int = 0) -> None:
        super().__init__(norm.normalized_shape, norm.eps)
        self.load_state_dict(norm.state_dict())
        self.prefix = prefix

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L, D) tokens -> (N, L, D); or (N, D, h, w) features -> (N, D, h, w)."""
        if tokens.ndim == 4:
            height, width = tokens.shape[-2:]
            rows = self(tokens.flatten(2).transpose(1, 2))
            return rows.transpose(1, 2).unflatten(2, (height, width))
        centred = tokens - tokens.mean(-1, keepdim=True)
        average = centred[:, self.prefix :].mean(1, keepdim=True)
        scale = (average.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return centred * scale * self.weight + self.bias


def norm_of_head(network: Any) -> PooledLayerNorm | None:
    """The norm between pooling and the linear head of timm's network, as of ConvNeXt; None without one."""
    norm = getattr(getattr(network, "head", None), "norm", None)
    return PooledLayerNorm(norm) if isinstance(norm, nn.LayerNorm) else None
