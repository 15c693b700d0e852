"""RIB: fine-tunes a classifier on one image without its last activation, and sums the CAMs on the way.

Reducing Information Bottleneck for Weakly Supervised Semantic Segmentation (NeurIPS 2021), section 4.
Plain PyTorch: any module with `features(x)` and `weight` will do.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from ribseg.functional.cam import active_area, class_maps, merge_mirrored
from ribseg.localize import check_views, evaluating, features_of, head_of, present_classes, restored
from ribseg.losses import rib_loss
from ribseg.pooling import GNDRP
from ribseg.types import Adaptation, Preset, Stop, Trainable, ViewMaps

Pooling = Callable[[Tensor, Tensor], Tensor]
Features = Callable[[Tensor], Tensor]
Reference = tuple[Tensor | None, Tensor | None]
References = Iterable[Reference]


@dataclass(frozen=True)
class Rules:
    """Where the presets differ; see the table in `RIB`."""

    margin_bounds_loss: bool  # min(m, y_c), against a stop rule
    area_keeps_first_view: bool  # the scale-1 map of the step that stops is summed, the others are not
    records_last: bool  # maps under theta_K are summed, too
    pooling: GNDRP


PRESETS: dict[Preset, Rules] = {
    "official": Rules(False, True, False, GNDRP(0.4, "all", "official")),
    "paper": Rules(True, False, True, GNDRP(0.4, "kept", "paper")),
    "fixed": Rules(False, False, False, GNDRP(0.4, "all", "official")),
}


class RIB:
    """Adapts a classifier to one image and returns the summed class activation maps.

    For k = 0, 1, ..: record the maps of all views under theta_k, then one SGD step on
    `- sum_c t_c y_c` over the image's own views and a batch of reference images, where `y` is the pooled
    class map (equations 6 and 7). The classifier itself is left exactly as it was.

    | preset   | margin m                             | area stop                       | maps summed |
    |----------|--------------------------------------|---------------------------------|-------------|
    | official | stops after the step whose own-view  | from k = 1 on, at once; the     | 0 .. K-1    |
    |          | target logits sum beyond it          | first view's map is summed      |             |
    | paper    | `min(m, y_c)` in the loss            | nothing of that step is summed  | 0 .. K      |
    | fixed    | as official                          | nothing of that step is summed  | 0 .. K-1    |

    The last update of `official` and `fixed` changes nothing that is read, so it is not computed.

    Args:
        classifier: a module with `features(x)` -> (N, D, h, w) and a parameter `weight`, (C, D) or
            (C, D, 1, 1). `trunk` and `tail`, as `ribseg.Classifier` has them, save work.
        pooling: callable (maps (N,C,h,w), labels (N,C)) -> (N,C); None takes the preset's GNDRP.
        steps: K. With 0 the result is the plain CAM.
        lr: learning rate at k = 0; it decays as (1 - k/K)^power.
        head_lr_factor: the head's rate is so many times `lr`.
        weight_decay: of SGD.
        margin: m; None switches it off.
        area_limit: adaptation ends when the share of locations of the first view whose normalised map
            exceeds `area_threshold` is larger than this; None switches it off.
        area_threshold: see above.
        loss_views: which views carry the loss; the others give maps only.
        trainable: what learns: "published" (layer3, layer4 and head), "layer4" (and head), or "head".
        preset: see the table.
        momentum: of SGD. The released program's optimizer passes its weight decay in this place, hence 1e-4.
        power: of the decay.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        classifier: nn.Module,
        pooling: Pooling | None = None,
        steps: int = 10,
        lr: float = 8e-6,
        head_lr_factor: float = 10.0,
        weight_decay: float = 1e-4,
        margin: float | None = 600.0,
        area_limit: float | None = 0.7,
        area_threshold: float = 0.3,
        loss_views: Sequence[int] = (0, 2, 3),
        trainable: Trainable = "published",
        preset: Preset = "official",
        momentum: float = 1e-4,
        power: float = 0.9,
    ) -> None:
        if preset not in PRESETS:
            raise ValueError(f"expected preset {' | '.join(PRESETS)}, got {preset!r}")
        if steps < 0 or lr < 0 or not loss_views:
            raise ValueError(
                f"expected steps >= 0, lr >= 0 and at least one loss view, got {steps}, {lr}, {loss_views}"
            )
        self.classifier, self.rules = classifier, PRESETS[preset]
        self.pooling: Pooling = self.rules.pooling if pooling is None else pooling
        self.steps, self.lr, self.head_lr_factor = steps, lr, head_lr_factor
        self.weight_decay, self.momentum, self.power = weight_decay, momentum, power
        self.margin, self.area_limit, self.area_threshold = margin, area_limit, area_threshold
        self.loss_views = tuple(loss_views)
        self.weight = head_of(classifier)
        self.frozen, self.adapted, self.parameters = partition(classifier, trainable)

    def __call__(self, views: Sequence[Tensor], labels: Tensor, references: References = ()) -> Adaptation:
        """Adapts to one image.

        Args:
            views: (2, 3, h_s, w_s) float tensors, the image at each scale with its mirror image second. The
                first is the one whose area is watched.
            labels: (C,) in {0, 1}.
            references: yields (images (B,3,S,S), labels (B,C)) per step, consumed lazily; (None, None), or
                nothing more, leaves the loss to the image's own views.

        Returns:
            Maps per view, summed over the steps; see `ribseg.types.Adaptation`. `stopped` is "not_finite"
            if a map, logit or loss was not finite; then the maps are those of the steps before.

        Raises:
            ValueError: views or labels have the wrong shape, or a loss view does not exist.
            RuntimeError: called under `torch.inference_mode`, where gradients cannot be had.
        """
        with self.adapting(views, labels, references) as result:
            return result

    @contextmanager
    def adapting(
        self, views: Sequence[Tensor], labels: Tensor, references: References = ()
    ) -> Iterator[Adaptation]:
        """Adapts to one image; inside the block the classifier keeps the adapted weights.

        For looking at what the adaptation did: gradients, logits, further maps. Afterwards, also after an
        error, the classifier is as it was. The weights inside are those of the last step that was computed:
        theta_K with the preset "paper", theta_{K-1} with the others, whose last update is never read. They
        may be not finite if `stopped` says so.

        Args:
            views: see `__call__`.
            labels: see `__call__`.
            references: see `__call__`.

        Yields:
            What `__call__` returns.

        Raises:
            ValueError: see `__call__`.
            RuntimeError: see `__call__`.
        """
        check_views(views, labels, len(self.weight))
        if max(self.loss_views) >= len(views):
            raise ValueError(
                f"loss_views {self.loss_views} name a view that is not among the {len(views)} given"
            )
        if torch.is_inference_mode_enabled():
            raise RuntimeError("RIB needs gradients; use torch.no_grad or Trainer(inference_mode=False)")
        classes = present_classes(labels)
        if len(classes) == 0:
            empty = ViewMaps([view.new_zeros(0, 1, 1) for view in views], classes)
            yield Adaptation(empty, classes, 0, None)
            return
        moving = [*self.parameters, self.weight]
        with evaluating(self.classifier), restored(moving, self.classifier), torch.enable_grad():
            yield self._adapt(views, labels, classes, iter(references))

    def rate(self, step: int) -> float:
        """The backbone's learning rate at a step: polynomial decay, as in the classifier's training."""
        return self.lr * (1 - step / self.steps) ** self.power

    def _adapt(
        self, views: Sequence[Tensor], labels: Tensor, classes: Tensor, references: Iterator[Reference]
    ) -> Adaptation:
        target = labels.to(self.weight.device, torch.float32)
        encoded = [self._encode(view) for view in views]
        optimizer = self._optimizer()
        sums = Sums(classes)
        last = self.steps if self.rules.records_last else max(self.steps - 1, 0)
        for step in range(last + 1):
            learns = step < last  # theta_{last + 1} is never read
            first = self._class_maps(encoded, 0, learns)
            stop = self._area_stop(first, sums) if step > 0 else None
            if stop is not None:
                return sums.result(views, step, stop)
            rest = [self._class_maps(encoded, view, learns) for view in range(1, len(views))]
            own = self._own_logits([first, *rest], target)
            on_target = (own.detach() * target).sum()
            if not sums.add([first, *rest]) or not torch.isfinite(on_target):
                return sums.result(views, step, "not_finite")
            if self._margin_stop(on_target):
                return sums.result(views, step + 1, "margin")
            if learns and not self._learn(optimizer, step, own, target, references):
                return sums.result(views, step, "not_finite")
        return sums.result(views, self.steps, None)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """What does not learn, computed once per view instead of once per step."""
        return self.frozen(images.to(self.weight.device))

    def _class_maps(self, encoded: Sequence[Tensor], view: int, learns: bool) -> Tensor:
        with torch.set_grad_enabled(learns and view in self.loss_views):
            return class_maps(self.adapted(encoded[view]), self.weight)

    def _own_logits(self, maps: Sequence[Tensor], target: Tensor) -> Tensor:
        rows = target.expand(2, -1)  # the image and its mirror image
        return torch.cat([self.pooling(maps[view], rows) for view in self.loss_views])

    def _area_stop(self, first: Tensor, sums: "Sums") -> Stop | None:
        merged = sums.present(first)
        area = float(active_area(merged, self.area_threshold))
        if math.isnan(area):
            return "not_finite"
        if self.area_limit is None or area <= self.area_limit:
            return None
        if self.rules.area_keeps_first_view:
            sums.maps[0] += merged
        return "area"

    def _margin_stop(self, on_target: Tensor) -> bool:
        if self.margin is None or self.rules.margin_bounds_loss or self.steps == 0:
            return False
        return abs(float(on_target)) > self.margin

    def _learn(
        self,
        optimizer: torch.optim.SGD,
        step: int,
        own: Tensor,
        target: Tensor,
        references: Iterator[Reference],
    ) -> bool:
        """One SGD step; False, and nothing done, if the loss is not finite."""
        logits, labels = own, target.expand_as(own)
        images, reference_labels = next(references, (None, None))
        if images is not None and reference_labels is not None:
            rows = reference_labels.to(target)
            maps = class_maps(self.adapted(self._encode(images)), self.weight)
            logits = torch.cat([logits, self.pooling(maps, rows)])
            labels = torch.cat([labels, rows])
        loss = rib_loss(logits, labels, self.margin if self.rules.margin_bounds_loss else None)
        if not torch.isfinite(loss):
            return False
        for group in optimizer.param_groups:
            group["lr"] = self.rate(step) * group["factor"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return True

    def _optimizer(self) -> torch.optim.SGD:
        groups = [
            {"params": self.parameters, "factor": 1.0},
            {"params": [self.weight], "factor": self.head_lr_factor},
        ]
        filled = [group for group in groups if group["params"]]
        return torch.optim.SGD(filled, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


class Sums:
    """The maps of the present classes, summed over the steps, one tensor per view."""

    def __init__(self, classes: Tensor) -> None:
        self.classes = classes
        self.maps: list[Tensor] = []

    def present(self, maps: Tensor) -> Tensor:
        """(2, C, h, w) class maps -> (K, h, w): rectified, mirror image merged in, float32."""
        return merge_mirrored(maps.detach()[:, self.classes.to(maps.device)].float())

    def add(self, maps: Sequence[Tensor]) -> bool:
        """Adds the maps of all views; False, and nothing added, if one is not finite."""
        merged = [self.present(view) for view in maps]
        if not all(bool(torch.isfinite(view).all()) for view in merged):
            return False
        self.maps = [a + b for a, b in zip(self.maps, merged, strict=True)] if self.maps else merged
        return True

    def result(self, views: Sequence[Tensor], steps: int, stopped: Stop | None) -> Adaptation:
        """What is there so far; zeros if the classifier was not finite from the start."""
        maps = self.maps or [view.new_zeros(len(self.classes), 1, 1) for view in views]
        return Adaptation(ViewMaps(maps, self.classes), self.classes, steps, stopped)


def partition(classifier: nn.Module, trainable: Trainable) -> tuple[Features, Features, list[nn.Parameter]]:
    """Cuts a classifier into what stays and what RIB adapts.

    Args:
        classifier: see `RIB`.
        trainable: what adapts besides the head.

    Returns:
        Images -> intermediate features (fixed), intermediate -> (N, D, h, w) features (adapted), and the
        adapted parameters without the head's.

    Raises:
        ValueError: unknown `trainable`, or one that this classifier cannot serve.
        TypeError: no classifier.
    """
    if trainable not in get_args(Trainable):
        raise ValueError(f"expected trainable {' | '.join(get_args(Trainable))}, got {trainable!r}")
    weight, features = head_of(classifier), features_of(classifier)
    if trainable == "head":
        return features, nn.Identity(), []
    trunk, tail = getattr(classifier, "trunk", None), getattr(classifier, "tail", None)
    if isinstance(trunk, nn.Module) and tail is not None:
        stages = [trunk, *tail]
        cut = 1 if trainable == "published" else len(stages) - 1
        frozen, adapted = nn.Sequential(*stages[:cut]), nn.Sequential(*stages[cut:])
        return frozen, adapted, list(adapted.parameters())
    if trainable != "published":
        raise ValueError(
            f'trainable="{trainable}" needs a classifier with trunk and tail (a list of stages), as '
            "ribseg.Classifier has them"
        )
    others = [p for p in classifier.parameters() if p is not weight and p.requires_grad]
    return nn.Identity(), features, others
