"""The plain programs that the stage is timed against: RIB with nothing saved, and the CAM alone.

RIB is `ribseg.functional.rib`: per step the whole network for every view and with gradients, an update also
after the last maps; reference images are decoded one after the other, and for the next image all weights are
copied anew. The draws are ours, so that the maps can be compared.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import torch
from measuring import Clock
from torch import Tensor, nn

from ribseg import Classifier, functional
from ribseg.data.feed.references import ReferenceBatches
from ribseg.functional import class_maps, merge_mirrored


@dataclass
class Settings:
    """The published recipe's; see `ribseg.RIB`."""

    steps: int
    lr: float
    threshold: float
    margin: float
    area_limit: float
    area_threshold: float


class Timed(nn.Module):
    """A classifier with a clock at its parts; copies of it have the same one."""

    clock: ClassVar[Clock]

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    @property
    def weight(self) -> Tensor:
        """Of the head."""
        return self.model.weight

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, D, h, w), with gradients but for the detached trunk."""
        with self.clock("trunk"):
            features = self.model.trunk(images.to(self.weight.device)).detach()
        with self.clock("forward"):
            for stage in self.model.tail:
                features = stage(features)
        return features


@contextmanager
def timed_learning(clock: Clock) -> Iterator[None]:
    """Counts the time of all backward passes and updates inside."""
    backward, step = Tensor.backward, torch.optim.SGD.step

    def timed_backward(self: Tensor) -> None:
        with clock("backward"):
            backward(self)

    def timed_step(self: torch.optim.SGD) -> None:
        with clock("update"):
            step(self)

    with (
        mock.patch.object(Tensor, "backward", timed_backward),
        mock.patch.object(torch.optim.SGD, "step", timed_step),
    ):
        yield


def adapt(
    model: Classifier,
    views: list[Tensor],
    image_id: str,
    references: ReferenceBatches,
    settings: Settings,
    clock: Clock,
) -> list[Tensor]:
    """Adapts to one image; (K, h, w) maps per view on the CPU, of its classes."""
    device, labels = model.weight.device, labels_of(references, image_id)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(settings.steps):
            with clock("data"):
                images, rows = references.batch(image_id, labels, step)
            assert images is not None
            assert rows is not None
            yield images.to(device), rows.to(device)

    Timed.clock = clock
    recipe = (settings.steps, settings.lr, settings.threshold, settings.margin, settings.area_limit)
    with timed_learning(clock):
        maps = functional.rib(
            Timed(model),
            views,
            torch.from_numpy(labels).to(device, torch.float32),
            batches(),
            "official",
            *recipe,
        )
    return [view.cpu() for view in maps]


@torch.no_grad()
def cam_only(
    model: Classifier,
    views: list[Tensor],
    image_id: str,
    references: ReferenceBatches,
    settings: Settings,
    clock: Clock,
) -> list[Tensor]:
    """Plain CAMs of the views, and of the references that RIB would draw: a floor for `trainable=head`."""
    Timed.clock = clock
    timed, labels = Timed(model).eval(), labels_of(references, image_id)
    maps = [merge_mirrored(class_maps(timed.features(view), timed.weight)).cpu() for view in views]
    for step in range(settings.steps - 1):
        with clock("data"):
            images, _ = references.batch(image_id, labels, step)
        assert images is not None
        class_maps(timed.features(images), timed.weight)
    return [view[labels > 0] for view in maps]


def labels_of(references: ReferenceBatches, image_id: str) -> np.ndarray[Any, Any]:
    """The (C,) labels of an image."""
    return references.dataset.labels[references.dataset.index(image_id)]


def save(path: Path, maps: list[Tensor], size: tuple[int, int]) -> None:
    """Merges and writes maps as the released program does: single precision, both sizes, uncompressed."""
    height, width = size
    strided = (-(-height // 4), -(-width // 4))
    full = (-(-height // 16) * 16, -(-width // 16) * 16)
    arrays = {}
    for name, target in (("strided", strided), ("full", full)):
        resized = [nn.functional.interpolate(m[None], target, mode="bilinear")[0] for m in maps]
        merged = torch.stack(resized).sum(0)[:, :height, :width]
        arrays[name] = (merged / (merged.amax((1, 2), keepdim=True) + 1e-5)).numpy()
    np.savez(path, **arrays)
