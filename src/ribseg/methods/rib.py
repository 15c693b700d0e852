"""RIB: fine-tunes a classifier on one image without its last activation, and sums the CAMs on the way.

Reducing Information Bottleneck for Weakly Supervised Semantic Segmentation (NeurIPS 2021), section 4.
Plain PyTorch: any module with `features(x)` and `weight` will do. Equations, rules and the published settings
are in docs/method.md, section 3.
"""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from ribseg.checks import check_choice, check_number, check_numbers, check_switch
from ribseg.errors import DeviceMemoryError
from ribseg.functional.cam import active_area, class_maps, merge_mirrored
from ribseg.functional.losses import rib_loss
from ribseg.functional.state import evaluating, restored
from ribseg.kernels.folding import Folds, fold_batch_norm
from ribseg.methods.cam import cam, check_views, features_of, head_of, present_classes
from ribseg.methods.pooling import GNDRP
from ribseg.methods.stops import Check, first_stop
from ribseg.types import Adaptation, Preset, Stop, Trainable, ViewMaps

Pooling = Callable[[Tensor, Tensor], Tensor]
Features = Callable[[Tensor], Tensor]
Reference = tuple[Tensor | None, Tensor | None]
References = Iterable[Reference]

CACHED_PIXELS = 2**17  # two crops of 256, one of 512: measured with ResNet-50


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

    What costs time is done once, or not at all: the part of the network that does not learn sees each view
    once, not once per step; frozen BatchNorm statistics are folded into the convolutions; numbers that may
    stop the adaptation are read while a GPU is busy. Maps differ from those of the plain loop by rounding.

    Args:
        classifier: a module with `features(x)` -> (N, D, h, w) and a parameter `weight`, (C, D) or
            (C, D, 1, 1). `trunk` and `tail`, as `ribseg.Classifier` has them, save work; their layers are
            looked at now and must not be replaced later.
        pooling: callable (maps (N,C,h,w), labels (N,C)) -> (N,C); None takes the preset's GNDRP.
        steps: K. With 0 the result is that of `ribseg.cam`.
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
        reference_chunk: reference images per pass through the network; None: all of a batch. Fewer need less
            memory. The gradients are summed, so the maps are the same but for rounding.
        compile: let `torch.compile` fuse the network's operations, for any image size at once; takes a minute
            or two, once, and is meant for thousands of images on a GPU.

    Raises:
        ConfigError: an argument is out of range.
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
        reference_chunk: int | None = None,
        compile: bool = False,
    ) -> None:
        check_choice("preset", preset, list(PRESETS))
        check_number("steps", steps, low=0, whole=True)
        rates = {"lr": lr, "head_lr_factor": head_lr_factor, "weight_decay": weight_decay}
        for name, value in (rates | {"momentum": momentum, "power": power}).items():
            check_number(name, value, low=0)
        check_number("margin", margin, words=(None,))
        check_number("area_limit", area_limit, 0, 1, words=(None,))
        check_number("area_threshold", area_threshold, 0, 1)
        check_number("reference_chunk", reference_chunk, low=1, whole=True, words=(None,))
        check_switch("compile", compile)
        check_numbers("loss_views", loss_views, low=0, whole=True)
        self.classifier, self.rules = classifier, PRESETS[preset]
        self.pooling: Pooling = self.rules.pooling if pooling is None else pooling
        self.steps, self.lr, self.head_lr_factor = steps, lr, head_lr_factor
        self.weight_decay, self.momentum, self.power = weight_decay, momentum, power
        self.margin, self.area_limit, self.area_threshold = margin, area_limit, area_threshold
        self.loss_views, self.reference_chunk = tuple(loss_views), reference_chunk
        self.weight = head_of(classifier)
        self.frozen, self.adapted, self.parameters, self.layout = partition(classifier, trainable)
        self._fixed_folds, self._folds = (
            Folds(part, fastest=not compile) for part in (self.frozen, self.adapted)
        )
        if compile:
            self.frozen, self.adapted = (torch.compile(f, dynamic=True) for f in (self.frozen, self.adapted))

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
            DeviceMemoryError: the device's memory does not suffice.
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
            DeviceMemoryError: see `__call__`.
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
        if self.steps == 0:
            yield cam(self.classifier, views, labels)
            return
        moving = [*self.parameters, self.weight]
        with (
            evaluating(self.classifier),
            restored(moving, self.classifier),
            torch.enable_grad(),
            casting_anew(),
        ):
            yield self._adapt(views, labels, classes, iter(references))

    @property
    def has_stop_rule(self) -> bool:
        """Whether the margin or the area can end an adaptation before its last step."""
        return self.area_limit is not None or not (self.margin is None or self.rules.margin_bounds_loss)

    @property
    def updates(self) -> int:
        """How many steps change weights that are read, and so how many batches of references are used."""
        return self.steps if self.rules.records_last else max(self.steps - 1, 0)

    def rate(self, step: int) -> float:
        """The backbone's learning rate at a step: polynomial decay, as in the classifier's training."""
        return self.lr * (1 - step / self.steps) ** self.power

    def _adapt(
        self, views: Sequence[Tensor], labels: Tensor, classes: Tensor, references: Iterator[Reference]
    ) -> Adaptation:
        sums = Sums(classes.to(self.weight.device, non_blocking=True), classes)
        try:
            with self._fixed_folds.shared(), closing(self._steps(views, labels, references, sums)) as checks:
                stop = first_stop(checks, deferred=self.weight.is_cuda)
        except torch.OutOfMemoryError as error:
            sizes = ", ".join(f"{view.shape[-2]} x {view.shape[-1]}" for view in views)
            raise DeviceMemoryError(
                f"the memory of {self.weight.device} does not suffice for views of {sizes} and "
                f"{self.reference_chunk or 'all'} reference images at once. Pass fewer of them at once "
                "(rib.reference_chunk=4; the maps stay the same), compute in half precision "
                "(trainer.precision=bf16-mixed), or make large images smaller (data.max_side=...)"
            ) from error
        return sums.result(views, *(stop or (self.steps, None)))

    def _steps(
        self, views: Sequence[Tensor], labels: Tensor, references: Iterator[Reference], sums: "Sums"
    ) -> Generator[Check | None, None, None]:
        """Takes the steps; yields what may stop it, see `first_stop`."""
        target = labels.to(self.weight.device, torch.float32, non_blocking=True)
        encoded = [self._encode(view) for view in views]
        optimizer = self._optimizer()
        last = self.updates
        for step in range(last):
            with self._folds.shared():
                own = yield from self._record(encoded, target, sums, step)
                optimizer.zero_grad()
                losses = [self._backward(own, target.expand_as(own))]
                yield None
                losses += self._learn_references(next(references, (None, None)))
                yield Check(step, torch.stack(losses), _finite_or_stop)
                self._folds.settle()
            self._update(optimizer, step)
        with torch.no_grad(), self._folds.shared():  # theta_{last + 1} is never read
            yield from self._record(encoded, target, sums, last)

    def _record(
        self, encoded: Sequence[Tensor], target: Tensor, sums: "Sums", step: int
    ) -> Generator[Check | None, None, Tensor]:
        """Sums the maps of a step, unless a rule says otherwise; returns the logits of the loss views."""
        raw = [self._class_maps(encoded, 0)]
        merged = [sums.present(raw[0])]
        if step > 0:
            area = active_area(merged[0], self.area_threshold)
            yield Check(step, area[None], partial(self._area_stop, sums, merged[0]))
        raw += [self._class_maps(encoded, view) for view in range(1, len(encoded))]
        merged += [sums.present(view) for view in raw[1:]]
        own = self._own_logits(raw, target)
        state = torch.stack([(own.detach() * target).sum(), all_finite(merged)])
        yield Check(step, state, partial(self._sum_or_stop, sums, merged))
        return own

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """What does not learn, computed once per view instead of once per step."""
        images = images.to(self.weight.device, non_blocking=True, memory_format=self.layout)
        # Of a few what lies between the layers stays in a CPU's cache. Others' modules get all at once.
        few = max(1, CACHED_PIXELS // (images.shape[-2] * images.shape[-1]))
        if self.weight.device.type == "cpu" and self.layout == torch.channels_last and len(images) > few:
            return torch.cat([self.frozen(part) for part in images.split(few)])
        return self.frozen(images)

    def _class_maps(self, encoded: Sequence[Tensor], view: int) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and view in self.loss_views):
            return self._maps(encoded[view])

    def _maps(self, encoded: Tensor) -> Tensor:
        return class_maps(self.adapted(encoded), self.weight)

    def _own_logits(self, maps: Sequence[Tensor], target: Tensor) -> Tensor:
        rows = target.expand(2, -1)  # the image and its mirror image
        return torch.cat([self.pooling(maps[view], rows) for view in self.loss_views])

    def _area_stop(self, sums: "Sums", first: Tensor, values: Sequence[float]) -> Stop | None:
        (area,) = values
        if math.isnan(area):
            return "not_finite"
        if self.area_limit is None or area <= self.area_limit:
            return None
        if self.rules.area_keeps_first_view:
            sums.maps[0] += first
        return "area"

    def _sum_or_stop(self, sums: "Sums", merged: Sequence[Tensor], values: Sequence[float]) -> Stop | None:
        on_target, finite = values
        if not finite or not math.isfinite(on_target):
            return "not_finite"
        sums.add(merged)
        if self.margin is None or self.rules.margin_bounds_loss:
            return None
        return "margin" if abs(on_target) > self.margin else None

    def _learn_references(self, batch: Reference) -> list[Tensor]:
        """Adds the gradients of a reference batch; its losses, one for each part that was passed."""
        images, labels = batch
        if images is None or labels is None:
            return []
        size = self.reference_chunk or len(images)
        labels = labels.to(self.weight.device, self.weight.dtype, non_blocking=True)
        return [
            self._reference_loss(*part) for part in zip(images.split(size), labels.split(size), strict=True)
        ]

    def _reference_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        maps = self._maps(self._encode(images))
        return self._backward(self.pooling(maps, labels), labels)

    def _backward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Adds the gradients of some rows: the loss is a sum, so rows may come one after the other."""
        loss = rib_loss(logits, labels, self.margin if self.rules.margin_bounds_loss else None)
        loss.backward()
        return loss.detach()

    def _update(self, optimizer: torch.optim.SGD, step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.rate(step) * group["factor"]
        optimizer.step()

    def _optimizer(self) -> torch.optim.SGD:
        groups = [
            {"params": self.parameters, "factor": 1.0},
            {"params": [self.weight], "factor": self.head_lr_factor},
        ]
        filled = [group for group in groups if group["params"]]
        return torch.optim.SGD(filled, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


class Sums:
    """The maps of the present classes, summed over the steps, one tensor per view.

    Args:
        index: (K,) indices of the present classes where the maps are: they are not copied at each step.
        classes: the same on the CPU, for the result.
    """

    def __init__(self, index: Tensor, classes: Tensor) -> None:
        self.index, self.classes = index, classes
        self.maps: list[Tensor] = []

    def present(self, maps: Tensor) -> Tensor:
        """(2, C, h, w) class maps -> (K, h, w): rectified, mirror image merged in, float32."""
        return merge_mirrored(maps.detach()[:, self.index].float())

    def add(self, maps: Sequence[Tensor]) -> None:
        """Adds the maps of all views."""
        self.maps = [a + b for a, b in zip(self.maps, maps, strict=True)] if self.maps else list(maps)

    def result(self, views: Sequence[Tensor], step: int, stopped: Stop | None) -> Adaptation:
        """What is there so far; zeros if the classifier was not finite from the start."""
        steps = step + 1 if stopped == "margin" else step  # this rule ends the step that it is found in
        maps = self.maps or [view.new_zeros(len(self.classes), 1, 1) for view in views]
        return Adaptation(ViewMaps(maps, self.classes), self.classes, steps, stopped)


@contextmanager
def casting_anew() -> Iterator[None]:
    """Inside, a caller's `torch.autocast` casts weights at each use.

    What it has cast once it would otherwise use for as long as its block lasts: the updates of the steps
    would change nothing, and the weights of each step would stay in memory.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def all_finite(maps: Sequence[Tensor]) -> Tensor:
    """1.0 if all values are finite, else 0.0, as a scalar tensor on the maps' device."""
    return torch.stack([torch.isfinite(view).all() for view in maps]).all().float()


def _finite_or_stop(values: Sequence[float]) -> Stop | None:
    return None if all(map(math.isfinite, values)) else "not_finite"


class Parts(NamedTuple):
    """A classifier, cut.

    Attributes:
        frozen: images -> intermediate features; stays as it is.
        adapted: intermediate -> (N, D, h, w) features.
        parameters: those of `adapted`.
        layout: memory format that images should have.
    """

    frozen: Features
    adapted: Features
    parameters: list[nn.Parameter]
    layout: torch.memory_format


def partition(classifier: nn.Module, trainable: Trainable) -> Parts:
    """Cuts a classifier into what stays and what RIB adapts besides the head.

    Raises:
        ValueError: unknown `trainable` (a ConfigError), or one that this classifier cannot serve.
        TypeError: no classifier.
    """
    check_choice("trainable", trainable, get_args(Trainable))
    weight, features = head_of(classifier), features_of(classifier)
    trunk, tail = getattr(classifier, "trunk", None), getattr(classifier, "tail", None)
    if isinstance(trunk, nn.Module) and tail is not None:
        stages = [trunk, *tail]
        cut = {"published": 1, "layer4": len(stages) - 1, "head": len(stages)}[trainable]
        first, rest = nn.Sequential(*stages[:cut]), nn.Sequential(*stages[cut:])
        # Channels last is what the fast kernels of GPUs want; on CPUs the trunk gets a third faster by it.
        folded = fold_batch_norm(first), fold_batch_norm(rest)
        return Parts(*folded, list(rest.parameters()), torch.channels_last)
    # Other modules get their images as they come: some take a layout for granted.
    if trainable == "head":
        return Parts(features, nn.Identity(), [], torch.preserve_format)
    if trainable == "layer4":
        raise ValueError(
            f'trainable="{trainable}" needs a classifier with trunk and tail (a list of stages), as '
            "ribseg.Classifier has them"
        )
    others = [p for p in classifier.parameters() if p is not weight and p.requires_grad]
    return Parts(nn.Identity(), features, others, torch.preserve_format)
