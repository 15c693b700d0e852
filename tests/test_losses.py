"""Cross entropy of the segmenter."""

import pytest
import torch
import torch.nn.functional as F

from ribseg.functional.losses import segmentation_loss

TARGET = torch.tensor([[[0, 0, 0, 1], [2, 255, 255, 0]], [[0, 0, 0, 0], [0, 0, 255, 0]]], dtype=torch.uint8)


def logits(size=(2, 4)):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


def test_is_torch_cross_entropy():
    expected = F.cross_entropy(logits(), TARGET.long(), ignore_index=255)
    torch.testing.assert_close(segmentation_loss(logits(), TARGET), expected)
    weights = torch.tensor([0.5, 2.0, 3.0])
    expected = F.cross_entropy(logits(), TARGET.long(), weights, ignore_index=255)
    torch.testing.assert_close(segmentation_loss(logits(), TARGET, weights), expected)


def test_balanced_is_one_mean_each_for_background_and_foreground():
    losses = F.cross_entropy(logits(), TARGET.long(), ignore_index=255, reduction="none")
    first = losses[0][TARGET[0] == 0].mean() + losses[0][(TARGET[0] == 1) | (TARGET[0] == 2)].mean()
    second = losses[1][TARGET[1] == 0].mean()  # no foreground
    torch.testing.assert_close(segmentation_loss(logits(), TARGET, balanced=True), (first + second) / 2)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("at", ["logits", "target"])
def test_nothing_labelled_teaches_nothing(balanced, at):
    values = logits((1, 2)).requires_grad_()
    loss = segmentation_loss(values, torch.full((2, 4, 8), 255, dtype=torch.uint8), balanced=balanced, at=at)
    loss.backward()
    assert loss == 0
    assert (values.grad == 0).all()


def test_sizes():
    small = logits((1, 2))
    large = F.interpolate(small, (2, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(segmentation_loss(small, TARGET), segmentation_loss(large, TARGET))
    # Reduced, a label is that of the pixel at the middle of its cell.
    expected = F.cross_entropy(small, torch.tensor([[[255, 0]], [[0, 0]]]), ignore_index=255)
    torch.testing.assert_close(segmentation_loss(small, TARGET, at="logits"), expected)


def test_half_precision_is_computed_in_single():
    loss = segmentation_loss(logits().bfloat16(), TARGET)
    assert loss.dtype == torch.float32
