"""RIB in one function, everything recomputed (RIB paper, section 4; docs/method.md, section 3)."""

import copy
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ribseg.functional.cam import active_area, class_maps, merge_mirrored
from ribseg.types import Preset


@torch.enable_grad()
def rib(
    classifier: Any,
    views: Sequence[Tensor],
    labels: Tensor,
    references: Iterable[tuple[Tensor, Tensor]] = (),
    preset: Preset = "official",
    steps: int = 10,
    lr: float = 8e-6,
    threshold: float = 0.4,
    margin: float = 600.0,
    area_limit: float = 0.7,
    loss_views: Sequence[int] = (0, 2, 3),
) -> list[Tensor]:
    """The maps of an image, by the algorithm as it is told; `ribseg.RIB` gives the same ones in less time.

    To be read, and to compare with: it adapts a copy of the classifier and checks none of its arguments. It
    has neither a guard against numbers that are not finite nor other poolings and losses.

    Args:
        classifier: a module with `features(x)` -> (N, D, h, w) and a parameter `weight`, (C, D) or
            (C, D, 1, 1). What requires a gradient learns, `weight` at 10 times the rate.
        views: (2, 3, h_s, w_s) float tensors, the image at each scale with its mirror image second.
        labels: (C,) in {0, 1}, with at least one class.
        references: images (B, 3, S, S) and labels (B, C) for each step; after their end there are none.
        preset: "official" (released program), "paper" (equations) or "fixed", see `ribseg.RIB`.
        steps: K, at least 1.
        lr: learning rate at k = 0.
        threshold: tau of equation 7, in [0, 1]; 1 with the preset "paper" is global average pooling.
        margin: m.
        area_limit: the adaptation ends when more of the first view is covered by maps above 0.3.
        loss_views: indices of the views in the loss.

    Returns:
        One (K, h', w') tensor per view, the maps of the present classes: ReLU'd, mirror image merged in,
        summed over the steps, not normalised.

    Source: RIB paper, equations 6 and 7, and the released program; docs/method.md, section 3.

    >>> net = torch.nn.Module()
    >>> net.features, net.weight = torch.nn.Conv2d(3, 4, 1), torch.nn.Parameter(torch.ones(2, 4))
    >>> maps = rib(net, [torch.ones(2, 3, 6, 8)], torch.tensor([1.0, 0.0]), preset="paper", loss_views=[0])
    >>> [tuple(view.shape) for view in maps]
    [(1, 6, 8)]
    """
    paper, model = preset == "paper", copy.deepcopy(classifier).eval()  # each image begins with theta_0
    weight, present, batches = model.weight, labels.nonzero().flatten(), iter(references)
    others = [p for p in model.parameters() if p.requires_grad and p is not weight]
    groups: list[dict[str, Any]] = [{"params": others}, {"params": [weight], "lr": 10 * lr}]
    sgd = torch.optim.SGD(groups, lr, momentum=1e-4, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.PolynomialLR(sgd, steps, power=0.9)
    sums = [torch.zeros((), device=weight.device) for _ in views]

    for k in range(steps + paper):
        # The maps under theta_k, A_c(u) = w_c f(u), and their sums
        A = [class_maps(model.features(view), weight) for view in views]
        cams = [merge_mirrored(a.detach()[:, present]) for a in A]
        if k > 0 and active_area(cams[0]) > area_limit:
            return [sums[0] + cams[0], *sums[1:]] if preset == "official" else sums
        sums = [total + cam for total, cam in zip(sums, cams, strict=True)]

        # A step on the image's own views and a batch of references
        rows = [(A[view], labels.expand(2, -1)) for view in loss_views]
        rows += [(class_maps(model.features(x), weight), t) for x, t in islice(batches, 1)]
        loss, own = weight.new_zeros(()), weight.new_zeros(())
        for number, (a, t) in enumerate(rows):
            peak = a.amax((-2, -1), keepdim=True)
            low = a.relu() <= threshold * peak.relu() if paper else a / peak < threshold
            K = low | (t == 0)[:, :, None, None]  # of absent classes all locations
            count = K.sum((-2, -1)).clamp(min=1) if paper else a[0, 0].numel()
            y = (K * a).sum((-2, -1)) / count  # equation 7
            loss = loss - (t * (y.clamp(max=margin) if paper else y)).sum()  # equation 6
            own += (t * y).detach().sum() if number < len(loss_views) else 0
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        schedule.step()
        if not paper and own.abs() > margin:  # in the paper it bounds the logits
            return sums
    return sums
