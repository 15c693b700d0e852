"""Class features and their loss for ReCAM (docs/method.md, section 3.8)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ribseg.functional.cam import EPS, class_maps


def class_features(features: Tensor, weight: Tensor) -> Tensor:
    """The features of an image under the CAM of each class (Chen et al., CVPR 2022, equation 4).

    Args:
        features: (N, D, h, w).
        weight: (C, D) or (C, D, 1, 1), of the head.

    Returns:
        (N, C, D), the mean over the locations of the features times the class's CAM, which is rectified and
        divided by its maximum (+ 1e-5).
    """
    maps = class_maps(features, weight).relu()
    maps = maps / (F.adaptive_max_pool2d(maps, 1) + EPS)
    places = features.shape[-2] * features.shape[-1]
    return torch.einsum("nchw,ndhw->ncd", maps, features.to(maps.dtype)) / places


def single_class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross entropy of class features, each of which has one label (ReCAM, equation 6).

    Args:
        logits: (N, C, C), row c of an image from its features under the CAM of class c.
        labels: (N, C) in {0, 1}; absent classes have no part in it.

    Returns:
        Scalar: the mean over the images of the mean over their classes, an image without a class being 0.

    >>> single_class_loss(torch.eye(2)[None] * 100, torch.ones(1, 2))
    tensor(0.)
    """
    own = -logits.log_softmax(2).diagonal(dim1=1, dim2=2)
    present = labels.to(own.dtype)
    return ((own * present).sum(1) / present.sum(1).clamp(min=1)).mean()
