"""Real photographs: MSRC and the genuine files of PASCAL VOC 2012 open without special cases."""

import time

import pytest

from ribseg.data.check.dataset import check_dataset
from ribseg.data.feed.views import multi_scale_views
from ribseg.data.voc import VOC_CLASSES, VOCFolder
from ribseg.errors import DataError
from ribseg.modules.data_module import WSSSDataModule


@pytest.mark.parametrize(("split", "count"), [("train", 300), ("val", 197)])
def test_msrc(real_data, split, count):
    data = VOCFolder(real_data / "msrc_v2", split)
    assert (len(data), data.num_classes) == (count, 16)
    assert data.labels.any(axis=1).sum() >= count - 1
    report = check_dataset(data, masks=True, full=True)
    assert (report.images, report.masks) == (count, count)


@pytest.mark.parametrize(("split", "count"), [("train", 1464), ("val", 1449), ("trainaug", 10582)])
def test_voc_lists_open_fast(real_data, split, count):
    start = time.perf_counter()
    data = VOCFolder(real_data, split)
    assert time.perf_counter() - start < 2
    assert (len(data), data.classes) == (count, VOC_CLASSES)
    assert data.labels.any(axis=1).all()


def test_voc_names_absent_images_at_once(real_data):
    with pytest.raises(DataError, match=r"(?s)absent images: 14\d\d.*and 14\d\d more"):
        check_dataset(VOCFolder(real_data, "train"))


@pytest.fixture
def labelled_voc(real_data, tmp_path):
    """The genuine files under a list of those images that are there and have labels."""
    voc = real_data / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "image_labels_xml.csv"):
        (tmp_path / name).symlink_to(voc / name)
    with pytest.raises(DataError, match="images without a row: 5") as caught:
        VOCFolder(real_data, "mini_images")
    lists, new = voc / "ImageSets" / "Segmentation", tmp_path / "ImageSets" / "Segmentation"
    new.mkdir(parents=True)
    ids = (lists / "mini_images.txt").read_text().split()
    (new / "train.txt").write_text("\n".join(i for i in ids if i not in str(caught.value)))
    (new / "val.txt").write_bytes((lists / "mini_masks.txt").read_bytes())
    return tmp_path


def test_voc_images_and_masks(labelled_voc):
    assert check_dataset(VOCFolder(labelled_voc, "train"), full=True).images == 89
    data = VOCFolder(labelled_voc, "val")
    assert check_dataset(data, masks=True, full=True).masks == 9
    assert any((data.mask(image_id) == 255).any() for image_id in data.ids)
    from_masks = VOCFolder(labelled_voc, "val", labels="mask")
    assert (from_masks.labels <= data.labels).all()  # XML is the superset
    assert multi_scale_views(data.image(data.ids[0]))[1].shape[:2] == (2, 3)


def test_data_module_on_voc(labelled_voc):
    module = WSSSDataModule(labelled_voc, eval_splits=["val"], crop_size=64, num_workers=0)
    assert module.check(full=True)["val"].masks == 9
    assert next(iter(module.train_dataloader())).image.shape == (16, 3, 64, 64)
    row = module.evals["val"].labels[0]
    _, labels = next(module.references(batch_size=5)(module.evals["val"].ids[0], row, 1))
    assert not (labels.numpy().astype(bool) & row).any()
