"""Multi-scale views equal those of the published program."""

import numpy as np
import pytest
import torch
from PIL import Image

from ribseg.data.feed.views import SCALES, ViewsDataset, multi_scale_views
from ribseg.data.io.images import IMAGENET_MEAN, IMAGENET_STD
from ribseg.data.voc import VOCFolder
from ribseg.errors import ConfigError, DataError


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (37, 51, 3), dtype=np.uint8)


def expected_view(image, scale):
    """What the published program is described to do: resize 8 bit, normalise, stack the mirror image."""
    height, width = int(np.round(image.shape[0] * scale)), int(np.round(image.shape[1] * scale))
    if scale != 1:
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    view = np.zeros((height, width, 3), np.float32)
    for channel in range(3):
        view[..., channel] = (image[..., channel] / 255.0 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
    view = view.transpose(2, 0, 1)
    return np.stack([view, np.flip(view, -1)])


def test_views_equal_the_published_ones(image):
    views = multi_scale_views(image)
    assert len(views) == 4
    for view, scale in zip(views, (1.0, 0.5, 1.5, 2.0), strict=True):
        assert view.dtype == torch.float32
        assert view.is_contiguous()
        np.testing.assert_array_equal(view.numpy(), expected_view(image, scale))


def test_sides_round_half_to_even(image):
    assert multi_scale_views(image[:5, :7], (0.5,))[0].shape == (2, 3, 2, 4)  # 2.5 and 3.5


def test_second_row_is_the_mirror_image(image):
    for view in multi_scale_views(image):
        assert torch.equal(view[1], view[0].flip(-1))


def test_one_pixel_high_keeps_a_pixel(image):
    assert [view.shape[2] for view in multi_scale_views(image[:1])] == [1, 1, 2, 2]


def test_mean_and_std(image):
    view = multi_scale_views(image, (1,), mean=(0, 0, 0), std=(1, 1, 1))[0]
    torch.testing.assert_close(view[0], torch.from_numpy(image).permute(2, 0, 1) / 255)


@pytest.mark.parametrize("scales", [(), (1.0, 0.0), (-1.0,)])
def test_wrong_scales(image, scales):
    with pytest.raises(ConfigError, match="scale"):
        multi_scale_views(image, scales)


def test_wrong_images(image):
    for wrong in (image[..., 0], image / 255, image.transpose(2, 0, 1)):
        with pytest.raises(DataError, match=r"expected an array \(H, W, 3\) of uint8"):
            multi_scale_views(wrong)


def test_dataset(voc_tree):
    train, val = VOCFolder(voc_tree, "train"), VOCFolder(voc_tree, "val")
    folders = {image_id: folder for folder in (train, val) for image_id in folder.ids}
    ids = [val.ids[1], train.ids[4]]
    data = ViewsDataset(folders, ids)
    item = data[1]
    assert (len(data), item.id, item.size) == (2, train.ids[4], (71, 33))
    assert item.labels.tolist() == [0, 1, 1]
    assert [tuple(view.shape[2:]) for view in item.views] == [(71, 33), (36, 16), (106, 50), (142, 66)]
    assert len(SCALES) == len(item.views)
    with pytest.raises(DataError, match="nobody"):
        ViewsDataset(folders, ["nobody"])
