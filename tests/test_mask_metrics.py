"""One confusion matrix over a set of masks."""

import pytest
import torch

from ribseg.metrics import MaskConfusion, confusion_matrix, counts_of, label_counts, pooled_scores


def masks(seed):
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randint(0, 4, (9, 11), generator=generator)
    target = torch.randint(0, 4, (9, 11), generator=generator)
    target[0] = 255
    return prediction, target


def test_is_pooled_over_images_not_averaged():
    metric = MaskConfusion(3)
    for seed in range(3):
        metric.update(*masks(seed))
    expected = pooled_scores(torch.stack([label_counts(*masks(seed), 3) for seed in range(3)]))
    torch.testing.assert_close(metric.compute(), expected)


def test_counts_by_hand():
    matrix = confusion_matrix(torch.tensor([[0, 1, 1, 2]]), torch.tensor([[0, 0, 1, 255]]), 2)
    assert matrix.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert counts_of(matrix).tolist() == [[1, 1, 0], [1, 2, 0], [2, 1, 0]]


def test_what_a_pseudo_mask_leaves_open_is_a_miss_and_no_prediction():
    counts = label_counts(torch.tensor([[0, 255, 255, 2]]), torch.tensor([[0, 1, 255, 2]]), 2)
    assert counts.tolist() == [[1, 0, 1], [1, 0, 1], [1, 1, 1]]
    assert float(pooled_scores(counts[None]).miou) == pytest.approx(2 / 3)


def test_states_of_processes_add_up():
    whole, *parts = (MaskConfusion(3) for _ in range(3))
    for seed in range(4):
        whole.update(*masks(seed))
        parts[seed % 2].update(*masks(seed))
    assert torch.equal(parts[0].confusion + parts[1].confusion, whole.confusion)


@pytest.mark.parametrize("prediction", [torch.tensor([[255]]), torch.tensor([[-1]]), torch.tensor([[0, 1]])])
def test_predictions_that_are_none(prediction):
    with pytest.raises(ValueError, match="expected"):
        confusion_matrix(prediction, torch.tensor([[0]]), 2)
