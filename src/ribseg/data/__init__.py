"""Data sets, image-level labels, transforms, views, reference images and map files.

The names below are imported on first use, so that `import ribseg.data` is fast. The LightningDataModule is in
`ribseg.modules.data_module`: this package does not need Lightning.
"""

from typing import TYPE_CHECKING

# The public names, see ribseg/__init__.py.
if TYPE_CHECKING:
    from ribseg.data.adapter import write_voc_tree as write_voc_tree
    from ribseg.data.augment.transforms import eval_transform as eval_transform
    from ribseg.data.augment.transforms import seeded as seeded
    from ribseg.data.augment.transforms import train_transform as train_transform
    from ribseg.data.base import BaseDataset as BaseDataset
    from ribseg.data.base import ImageDataset as ImageDataset
    from ribseg.data.check.dataset import CheckReport as CheckReport
    from ribseg.data.check.dataset import check_dataset as check_dataset
    from ribseg.data.feed.references import ReferenceBatches as ReferenceBatches
    from ribseg.data.feed.sampler import ReferenceSampler as ReferenceSampler
    from ribseg.data.feed.views import ViewsDataset as ViewsDataset
    from ribseg.data.feed.views import multi_scale_views as multi_scale_views
    from ribseg.data.io.images import IMAGENET_MEAN as IMAGENET_MEAN
    from ribseg.data.io.images import IMAGENET_STD as IMAGENET_STD
    from ribseg.data.io.images import read_image as read_image
    from ribseg.data.io.labels import labels_from_csv as labels_from_csv
    from ribseg.data.io.labels import labels_from_masks as labels_from_masks
    from ribseg.data.io.labels import labels_from_xml as labels_from_xml
    from ribseg.data.io.maps import load_maps as load_maps
    from ribseg.data.io.maps import save_maps as save_maps
    from ribseg.data.io.masks import read_mask as read_mask
    from ribseg.data.io.masks import voc_palette as voc_palette
    from ribseg.data.io.masks import write_mask as write_mask
    from ribseg.data.voc import VOC_CLASSES as VOC_CLASSES
    from ribseg.data.voc import VOCFolder as VOCFolder
else:
    from ribseg.lazy import lazy_names

    __getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
