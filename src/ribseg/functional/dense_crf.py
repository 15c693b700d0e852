"""Fully connected conditional random field (Krähenbühl, Koltun, NeurIPS 2011).

Published settings: docs/method.md, sections 5.1 and 6.

Mean-field inference under two Potts potentials between all pairs of pixels: a smoothness kernel over
positions, and an appearance kernel over positions and colors.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from ribseg.checks import check_choice, check_number
from ribseg.functional.guards import check_probabilities
from ribseg.kernels.permutohedral import PermutohedralLattice

Backend = Literal["auto", "pydensecrf", "torch"]
Labels = TypeVar("Labels", Tensor, np.ndarray)
TINY = 1e-20
SMALLEST_PROBABILITY = 1e-5  # as in pydensecrf's own unaries


@dataclass(frozen=True)
class CRFSettings:
    """Settings of `dense_crf`, described there.

    Raises:
        ConfigError: one is out of range.
    """

    iterations: int = 10
    gt_prob: float = 0.7
    gaussian_sxy: float = 3.0
    gaussian_compat: float = 3.0
    bilateral_sxy: float = 50.0
    bilateral_srgb: float = 5.0
    bilateral_compat: float = 10.0
    backend: str = "auto"

    def __post_init__(self) -> None:
        check_number("iterations", self.iterations, low=0, whole=True)
        check_number("gt_prob", self.gt_prob, above=0, below=1)
        for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"):
            check_number(name, getattr(self, name), above=0)
        for name in ("gaussian_compat", "bilateral_compat"):
            check_number(name, getattr(self, name), low=0)
        check_choice("backend", self.backend, get_args(Backend))


check_dense_crf: Callable[..., Any] = CRFSettings
"""Raises a ConfigError for a setting out of range, a TypeError for an unknown name."""


def dense_crf(
    image: Tensor | np.ndarray,
    labels_or_probabilities: Labels,
    *,
    iterations: int = 10,
    gt_prob: float = 0.7,
    gaussian_sxy: float = 3.0,
    gaussian_compat: float = 3.0,
    bilateral_sxy: float = 50.0,
    bilateral_srgb: float = 5.0,
    bilateral_compat: float = 10.0,
    num_labels: int | None = None,
    ignore_index: int = 255,
    backend: Backend = "auto",
) -> Labels:
    """Refines a label map, or class probabilities, with a dense CRF; returns the type that was given.

    The defaults are the published settings for confident labels. Those of the segmenter are `gaussian_sxy=1,
    bilateral_sxy=67, bilateral_srgb=3, bilateral_compat=4` on probabilities.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels_or_probabilities: (H, W) integer labels, or (K, H, W) float probabilities of K labels.
        iterations: of mean field; 0 applies the unary term only.
        gt_prob: probability of the given label, in (0, 1); the other labels share the rest.
        gaussian_sxy: standard deviation of the smoothness kernel, pixels.
        gaussian_compat: weight of the smoothness kernel; 0 disables it.
        bilateral_sxy: standard deviation of positions in the appearance kernel, pixels.
        bilateral_srgb: standard deviation of colors in the appearance kernel, gray levels.
        bilateral_compat: weight of the appearance kernel; 0 disables it.
        num_labels: M: the labels 0..M-1 are possible, and the map may hold no others, as in the published
            program with the classes of an image. None: only labels that occur in the map are possible.
        ignore_index: pixels with this label have a uniform unary term; the CRF decides their label.
        backend: "pydensecrf" (CPU, the reference; package pydensecrf2), "torch" (the same lattice on the
            device of labels_or_probabilities, nothing to compile), or "auto": pydensecrf on a CPU where it is
            installed, else torch.

    Returns:
        (H, W) labels in the dtype of the input, or (K, H, W) float32 probabilities that sum to one.

    Raises:
        ValueError: wrong shapes or dtypes, values that are no probabilities, or settings out of range.
        ModuleNotFoundError: backend "pydensecrf" without the package.
    """
    given = torch.as_tensor(labels_or_probabilities)
    pixels = torch.as_tensor(image)
    _check(pixels, given)
    settings = CRFSettings(
        iterations, gt_prob, gaussian_sxy, gaussian_compat, bilateral_sxy, bilateral_srgb, bilateral_compat,
        backend,
    )  # fmt: skip
    if backend == "auto":
        installed = importlib.util.find_spec("pydensecrf") is not None
        backend = "pydensecrf" if installed and given.device.type == "cpu" else "torch"
    infer = _infer_pydensecrf if backend == "pydensecrf" else _infer_torch
    if given.ndim == 3:
        unary = -given.to(torch.float32).clamp(SMALLEST_PROBABILITY, 1).log()
        refined = infer(pixels, unary, settings)
    else:
        candidates, unary = _unary_from_labels(given, gt_prob, num_labels, ignore_index)
        posterior = infer(pixels, unary, settings)
        refined = candidates[posterior.argmax(0)].to(given.dtype)
    if isinstance(labels_or_probabilities, np.ndarray):
        return refined.cpu().numpy()
    return refined.to(given.device)


def _check(image: Tensor, given: Tensor) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != torch.uint8:
        raise ValueError(
            f"expected an image (H, W, 3) of uint8, got {image.dtype} {tuple(image.shape)}; pass the "
            "image before normalization"
        )
    if given.ndim not in (2, 3) or given.is_floating_point() != (given.ndim == 3):
        raise ValueError(
            "expected labels (H, W) of integers or probabilities (K, H, W) of floats, got "
            f"{given.dtype} {tuple(given.shape)}"
        )
    if given.shape[-2:] != image.shape[:2] or 0 in given.shape:
        raise ValueError(
            f"expected labels or probabilities of the image's size {tuple(image.shape[:2])}, got "
            f"{tuple(given.shape)}; resize them first"
        )
    if given.ndim == 3:
        check_probabilities(given)


def _unary_from_labels(
    labels: Tensor, gt_prob: float, num_labels: int | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """The possible labels (M,) and their unary energies (M, H, W): minus log probability."""
    known = labels != ignore_index
    candidates = torch.unique(labels[known])
    if num_labels is not None:
        if len(candidates) and not 0 <= int(candidates[0]) <= int(candidates[-1]) < num_labels:
            raise ValueError(
                f"expected labels in 0..{num_labels - 1} or {ignore_index}, got {candidates.tolist()}; "
                "number the present classes consecutively"
            )
        candidates = torch.arange(num_labels, device=labels.device)
    if len(candidates) == 0:
        candidates = labels.new_full((1,), ignore_index)  # no pixel has a label: all stay ignored
    count = len(candidates)
    chosen = labels[None] == candidates[:, None, None]
    other = (1 - gt_prob) / max(count - 1, 1)
    probability = torch.where(chosen, gt_prob, other).to(torch.float32)
    return candidates, -torch.where(known, probability, 1 / count).log()


def _infer_pydensecrf(image: Tensor, unary: Tensor, settings: CRFSettings) -> Tensor:
    densecrf = _import_pydensecrf()
    count, height, width = unary.shape
    if count == 1:
        return torch.ones_like(unary)
    field = densecrf.DenseCRF2D(width, height, count)
    field.setUnaryEnergy(np.ascontiguousarray(unary.cpu().numpy()).reshape(count, -1))
    if settings.gaussian_compat:
        field.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_compat)
    if settings.bilateral_compat:
        field.addPairwiseBilateral(
            sxy=settings.bilateral_sxy,
            srgb=settings.bilateral_srgb,
            rgbim=np.array(image.cpu().numpy(), order="C"),
            compat=settings.bilateral_compat,
        )
    posterior = np.array(field.inference(settings.iterations), dtype=np.float32)
    return torch.from_numpy(posterior).view(unary.shape)


def _import_pydensecrf() -> Any:
    try:
        densecrf = importlib.import_module("pydensecrf.densecrf")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the CRF backend "pydensecrf" needs the package pydensecrf2: pip install pydensecrf2 (compiled '
            'from source, needs a C++ compiler). Or use backend="torch", which needs neither.'
        ) from error
    return densecrf


def _infer_torch(image: Tensor, unary: Tensor, settings: CRFSettings) -> Tensor:
    count = len(unary)
    energy = unary.flatten(1).T.contiguous()  # (n, K)
    filters = [
        (weight, lattice, _normalizer(lattice, energy))
        for weight, lattice in _lattices(image.to(unary.device), settings)
    ]
    posterior = torch.softmax(-energy, 1)
    for _ in range(settings.iterations if count > 1 else 0):
        logits = -energy
        for weight, lattice, normalizer in filters:
            logits = logits + weight * normalizer * lattice(normalizer * posterior)
        posterior = torch.softmax(logits, 1)
    return posterior.T.reshape(unary.shape)


def _lattices(image: Tensor, settings: CRFSettings) -> list[tuple[float, PermutohedralLattice]]:
    """(weight, filter) of the kernels with a weight above zero."""
    height, width = image.shape[:2]
    rows = torch.arange(height, device=image.device).repeat_interleave(width)
    columns = torch.arange(width, device=image.device).repeat(height)
    positions = torch.stack([columns, rows], 1).to(torch.float32)
    colors = image.reshape(-1, 3).to(torch.float32) / settings.bilateral_srgb
    appearance = torch.cat([positions / settings.bilateral_sxy, colors], 1)
    terms = [
        (settings.gaussian_compat, positions / settings.gaussian_sxy),
        (settings.bilateral_compat, appearance),
    ]
    return [(weight, PermutohedralLattice(features)) for weight, features in terms if weight]


def _normalizer(lattice: PermutohedralLattice, energy: Tensor) -> Tensor:
    """(n, 1) factors of the symmetric normalization, applied before and after the filter."""
    return (lattice(energy.new_ones(len(energy), 1)) + TINY).rsqrt()
