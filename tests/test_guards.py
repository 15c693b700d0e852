"""Functions refuse values that would give a wrong result in silence."""

import pytest
import torch

from ribseg.functional import (
    argmax_labels,
    attention_affinity,
    box_mask,
    dense_crf,
    labels_with_saliency,
    pixel_adaptive,
    random_walk,
)
from ribseg.functional.losses import cross_entropy, rib_loss, signed_rib_loss, squared_error
from ribseg.functional.pixels import pixel_histogram
from ribseg.functional.threshold import score_histogram
from ribseg.metrics import confusion_matrix, label_counts

NAN, STEPS = float("nan"), torch.tensor([0.1, 0.5])
IMAGE, MASK, ONE = (
    torch.zeros(4, 5, 3, dtype=torch.uint8),
    torch.zeros(4, 5, dtype=torch.int64),
    torch.tensor([0]),
)


def broken(value=NAN):
    """Maps of one class with one odd value."""
    maps = torch.full((1, 4, 5), 0.5)
    maps[0, 2, 2] = value
    return maps


def crf(values):
    return dense_crf(IMAGE, values, backend="torch", iterations=1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: argmax_labels(broken(), ONE, 0.1),
        lambda: argmax_labels(broken(float("inf")), ONE, 0.1),
        lambda: argmax_labels(broken(0.3), torch.tensor([0, 1]), 0.1),
        lambda: score_histogram(broken(), STEPS),
        lambda: pixel_histogram(broken(), ONE, MASK, STEPS),
        lambda: pixel_histogram(broken(0.1), ONE, MASK, STEPS.flip(0)),
        lambda: box_mask(broken()),
        lambda: random_walk(broken(), torch.zeros(4, 5), radius=2, steps=2),
        lambda: pixel_adaptive(IMAGE.permute(2, 0, 1), broken()),
        lambda: confusion_matrix(MASK.float(), MASK, 3),
        lambda: confusion_matrix(MASK, MASK + 7, 3),
        lambda: labels_with_saliency(broken(), ONE, torch.ones(4, 5), 0.5),
        lambda: labels_with_saliency(broken(0.1), ONE, broken()[0], 0.5),
        lambda: attention_affinity(broken()[0, :4, :4]),
        lambda: attention_affinity(torch.randn(4, 4)),
        lambda: crf(torch.randn(3, 4, 5)),
        lambda: crf(torch.cat([broken(), broken(0.5)])),
        lambda: crf(torch.full((3, 4, 5), 0.9)),
        lambda: label_counts(MASK, MASK[:, :1].expand(4, 1), 3),
        *(
            lambda loss=loss: loss(torch.ones(2, 3), torch.ones(3))
            for loss in (rib_loss, signed_rib_loss, cross_entropy, squared_error)
        ),
    ],
)
def test_values_that_would_be_taken_for_others(call):
    with pytest.raises(ValueError, match="expected"):
        call()


def test_probabilities_in_half_precision_are_probabilities():
    crf(torch.randn(3, 4, 5).softmax(0).half())
