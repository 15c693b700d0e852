"""Data sets in PASCAL VOC layout, image-level labels, transforms, views, reference images and map files.

The names below are loaded on first use, so that `import ribseg.data` costs nothing. The LightningDataModule
is in `ribseg.data.datamodules` and is not among them: this folder stays usable without Lightning.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "IMAGENET_MEAN": "images",
    "IMAGENET_STD": "images",
    "write_voc_tree": "adapter",
    "read_image": "images",
    "read_mask": "masks",
    "voc_palette": "masks",
    "write_mask": "masks",
    "labels_from_csv": "labels",
    "labels_from_masks": "labels",
    "labels_from_xml": "labels",
    "VOC_CLASSES": "voc",
    "VOCFolder": "voc",
    "CheckReport": "check",
    "check_dataset": "check",
    "eval_transform": "transforms",
    "seeded": "transforms",
    "train_transform": "transforms",
    "Ids": "ids",
    "ServedImages": "served",
    "ViewsDataset": "views",
    "multi_scale_views": "views",
    "ReferenceBatches": "references",
    "ReferenceSampler": "references",
    "load_maps": "maps",
    "save_maps": "maps",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
