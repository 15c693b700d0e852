"""The formulas of class activation maps on numbers that can be checked by hand."""

import torch

from ribseg.functional.cam import active_area, merge_mirrored


def test_a_mirror_image_is_flipped_back_and_negative_values_count_as_zero():
    maps = torch.tensor([[[[1.0, -2.0, 0.0]]], [[[0.5, 4.0, -3.0]]]])
    assert merge_mirrored(maps).tolist() == [[[1.0, 4.0, 0.5]]]


def test_the_area_of_a_map_that_is_not_finite_is_no_small_area():
    maps = torch.tensor([[[1.0, 0.0], [0.2, 0.5]]])
    assert active_area(maps, 0.3).item() == 0.5
    maps[0, 0, 1] = torch.nan
    assert active_area(maps, 0.3).isnan()
