"""RIB as the released program runs it: the same maps, and nothing saved (docs/method.md, section 3).

Per image: two scans of all labels in Python; per step: the whole network for every view and with gradients,
reference images decoded one after the other, the pooling's mask class by class and row by row, an update
also after the last maps; before the next image all weights are loaded anew. The draws are ours, so that the
maps can be compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measuring import Clock
from torch import Tensor, nn

from ribseg import Classifier
from ribseg.data.feed.references import ReferenceBatches
from ribseg.functional import active_area, merge_mirrored


@dataclass
class Settings:
    """The published recipe's; see `ribseg.RIB`."""

    steps: int
    lr: float
    threshold: float
    margin: float
    area_limit: float
    area_threshold: float


def masked_pooling(maps: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """GNDRP of (N, C, h, w) maps for (N, C) labels on the CPU, one class of one row after the other."""
    share = torch.zeros_like(maps)
    for row in range(maps.shape[0]):
        present = torch.nonzero(labels[row])[:, 0]
        for number in range(maps.shape[1]):
            if number in present:
                share[row, number] = (maps[row, number] / maps[row, number].max()).detach()
            else:
                share[row, number] = -1
    return (maps * (share < threshold)).flatten(2).mean(-1)


def scan_labels(labels: np.ndarray, index: int) -> list[int]:
    """Images that share no class with one of them, by comparing sets; then those that share all of its."""
    target = set(np.nonzero(labels[index])[0].tolist())
    disjoint = [n for n, row in enumerate(labels) if not target & set(np.nonzero(row)[0].tolist())]
    _ = [n for n, row in enumerate(labels) if target <= set(np.nonzero(row)[0].tolist())]
    return disjoint


def adapt(
    model: Classifier,
    state: Mapping[str, Tensor],
    views: list[Tensor],
    image_id: str,
    references: ReferenceBatches,
    settings: Settings,
    clock: Clock,
) -> list[Tensor]:
    """Adapts to one image; (C, h, w) maps per view on the CPU, of all classes."""
    dataset, device = references.dataset, model.weight.device
    with clock("restore"):
        model.load_state_dict(state)
    with clock("data"):
        index = dataset.index(image_id)
        disjoint = scan_labels(dataset.labels, index)
        host = torch.from_numpy(dataset.labels[index]).float()[None]
        labels = host.to(device)
    assert disjoint == references.sampler.candidates(image_id, dataset.labels[index]).tolist()
    tail = [weight for stage in model.tail for weight in stage.parameters()]
    groups = [{"params": tail}, {"params": [model.weight]}]
    optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=1e-4, weight_decay=1e-4)
    sums: list[Tensor] = []
    for step in range(settings.steps):
        with clock("data"):
            images, reference_labels = references.batch(image_id, dataset.labels[index], step)
        assert images is not None
        assert reference_labels is not None
        logits, rows = [], []
        for number, view in enumerate(views):
            maps = class_maps(model, view.to(device), clock)
            with clock("forward"):
                merged = merge_mirrored(maps).detach().cpu()
            if step == 0:
                sums.append(merged)
            else:
                sums[number] += merged
            present = merged[host[0] > 0]
            area = active_area(present, settings.area_threshold) if step > 0 and number == 0 else 0.0
            if area > settings.area_limit:
                return sums
            if number != 1:
                with clock("forward"):
                    logits.append(masked_pooling(maps, host.expand(2, -1), settings.threshold))
                rows.append(labels.expand(2, -1))
        maps = class_maps(model, images.to(device), clock)
        with clock("forward"):
            rows.append(reference_labels.to(device))
            logits.append(masked_pooling(maps, reference_labels, settings.threshold))
            target = torch.cat(logits) * torch.cat(rows)
        with clock("backward"):
            optimizer.zero_grad()
            (-target.sum()).backward()
        with clock("update"):
            for group, factor in zip(optimizer.param_groups, (1, 10), strict=True):
                group["lr"] = settings.lr * factor * (1 - step / settings.steps) ** 0.9
            optimizer.step()
        if target[: 2 * (len(views) - 1)].sum().abs() > settings.margin:
            break
    return sums


@torch.no_grad()
def cam_only(
    model: Classifier,
    state: Mapping[str, Tensor],
    views: list[Tensor],
    image_id: str,
    references: ReferenceBatches,
    settings: Settings,
    clock: Clock,
) -> list[Tensor]:
    """Plain CAMs of the views, and of the references that RIB would draw: a floor for `trainable=head`."""
    device = model.weight.device
    maps = [merge_mirrored(class_maps(model, view.to(device), clock)).cpu() for view in views]
    labels = references.dataset.labels[references.dataset.index(image_id)]
    for step in range(settings.steps - 1):
        with clock("data"):
            images, _ = references.batch(image_id, labels, step)
        assert images is not None
        class_maps(model, images.to(device), clock)
    return maps


def class_maps(model: Classifier, images: Tensor, clock: Clock) -> Tensor:
    """The network from image to (N, C, h, w) maps, all of it with gradients but for the detached trunk."""
    with clock("trunk"):
        features = model.trunk(images).detach()
    with clock("forward"):
        for stage in model.tail:
            features = stage(features)
        return nn.functional.conv2d(features, model.weight)


def save(path: Path, maps: list[Tensor], labels: Tensor, size: tuple[int, int]) -> None:
    """Merges and writes maps as the released program does: single precision, both sizes, uncompressed."""
    height, width = size
    strided = (-(-height // 4), -(-width // 4))
    full = (-(-height // 16) * 16, -(-width // 16) * 16)
    arrays = {}
    for name, target in (("strided", strided), ("full", full)):
        resized = [nn.functional.interpolate(m[None], target, mode="bilinear")[0] for m in maps]
        merged = torch.stack(resized).sum(0)[:, :height, :width][labels > 0]
        arrays[name] = (merged / (merged.amax((1, 2), keepdim=True) + 1e-5)).numpy()
    np.savez(path, **arrays)
