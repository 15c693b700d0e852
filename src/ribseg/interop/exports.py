"""Photographs and masks in the layouts of trainers and label tools: docs/exports.md has the table.

What a form cannot say (255, holes) is counted and returned. Images with an EXIF orientation are written
upright, as the masks are.
"""

import json
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ribseg import __version__
from ribseg.checks import check_choice
from ribseg.data.base import check_names
from ribseg.data.io.images import open_image, orientation, read_header, read_image
from ribseg.data.io.masks import IGNORE, check_class_names, class_names_of, mask_ids, read_mask, voc_palette
from ribseg.errors import ConfigError, DataError, list_problems
from ribseg.files import (
    IMAGE_ENDINGS,
    atomic_file,
    atomic_write,
    is_taken,
    read_stamp,
    scan_folder,
    write_json,
)
from ribseg.progress import track
from ribseg.store.contents import Contents

STAMP = ".ribseg-export.json"
LOST = "pixels of 255, which the form cannot say"


class Masked(NamedTuple):
    """A photograph and its mask.

    Attributes:
        id: of the image, the name of its files.
        image: file of the photograph.
        mask: file of the mask, a PNG of class ids.
    """

    id: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class MaskSet:
    """Photographs with masks of the same classes.

    Attributes:
        classes: C names, without background.
        items: the photographs.
        split: name of the list.
    """

    classes: tuple[str, ...]
    items: Sequence[Masked]
    split: str = "train"


def export_masks(
    form: str, masks: MaskSet, out: str | Path, instances: bool = False, progress: bool | str = False
) -> dict[str, int]:
    """Writes photographs and masks in a form; returns what the form cannot say, with numbers.

    An interrupted call can be repeated; what is there is kept.

    Args:
        form: "mmseg", "nnunet", "hf", "coco", "labelme" or "voc".
        masks: to be written.
        out: folder; new, empty, or that of an interrupted call.
        instances: with "coco", an annotation for each connected part; else one for each class.
        progress: how progress is shown, see `ribseg.progress.check_progress`.

    Raises:
        ConfigError: the folder holds something else, or the form is unknown.
        DataError: a mask is broken, or of another size than its image; names do not go into the form.
    """
    check_choice("form", form, tuple(FORMS))
    target, writer = Path(out), FORMS[form](Path(out), masks, instances)
    begin(target, form, masks, instances)
    writer.check()
    said: Counter[str] = Counter()
    for item in track(masks.items, f"Writing {form}", len(masks.items), progress):
        mask = read_mask(item.mask, len(masks.classes))
        size = read_header(item.image).size
        if size != mask.shape:
            raise DataError(f"{item.mask} is of {mask.shape} (height, width), but {item.image} of {size}")
        writer.ignored |= bool((mask == IGNORE).any())
        said.update(writer.write(item, mask))
    writer.close()
    return {what: number for what, number in said.items() if number}


def begin(out: Path, form: str, masks: MaskSet, instances: bool) -> None:
    """Makes the folder, or goes on in that of an equal call."""
    stamp = {
        "form": form,
        "classes": list(masks.classes),
        "instances": instances,
        "split": masks.split,
        "content": [[name, *map(content_of, paths)] for name, *paths in masks.items],
    }
    if read_stamp(out / STAMP) == stamp:
        return
    if is_taken(out):
        raise ConfigError(
            f"{out} holds something else already, or the export of other masks: choose a new or empty folder"
        )
    if not masks.items:
        raise DataError("there is no mask to be written")
    write_json(out / STAMP, stamp)


def content_of(path: Path) -> str:
    """The digest of a file; a DataError if it is absent."""
    (digest,) = Contents().digests(path.parent, [path.name])
    if digest == "absent":
        raise DataError(f"{path} is absent")
    return digest


class Form(ABC):
    """A form of photographs with masks.

    Args:
        out: its folder.
        masks: all that will be written.
        instances: see `export_masks`.

    Attributes:
        ignored: whether a mask that was written has 255.
    """

    ignored = False

    def __init__(self, out: Path, masks: MaskSet, instances: bool = False) -> None:
        self.out, self.masks, self.instances = out, masks, instances
        self.classes, self.split = masks.classes, masks.split

    def check(self) -> None:  # noqa: B027
        """Raises a DataError for ids or names that do not go into the form."""

    @abstractmethod
    def write(self, item: Masked, mask: np.ndarray) -> Mapping[str, int]:
        """Writes one photograph and its (H, W) uint8 mask; returns what is lost, with numbers."""

    def close(self) -> None:  # noqa: B027
        """Writes what describes the whole."""


class MMSegmentation(Form):
    """mmsegmentation's `img_dir`, `ann_dir`: gray PNGs of ids, 0 background, 255 ignored.

    It takes one ending of photographs for all: if theirs differ, all are PNGs.
    """

    @cached_property
    def ending(self) -> str:
        """Of the photographs."""
        endings = {ending_of(item) for item in self.masks.items}
        return endings.pop() if len(endings) == 1 else ".png"

    def write(self, item: Masked, mask: np.ndarray) -> Mapping[str, int]:
        """See `Form`."""
        place_image(item, self.out / "img_dir" / self.split, self.ending)
        save_png(self.out / "ann_dir" / self.split / f"{item.id}.png", mask)
        return {}

    def close(self) -> None:
        """Writes metainfo.py, to be copied into a configuration."""
        names, colours = ("background", *self.classes), voc_palette()[: len(self.classes) + 1].tolist()
        text = (
            "# A data set of mmsegmentation; 255 is ignored, and background is a class of its own.\n"
            f"metainfo = dict(classes={names!r}, palette={colours!r})\n"
            "dataset = dict(type='BaseSegDataset', metainfo=metainfo,\n"
            f"               data_root={str(self.out.absolute())!r},\n"
            f"               data_prefix=dict(img_path='img_dir/{self.split}', "
            f"seg_map_path='ann_dir/{self.split}'),\n"
            f"               img_suffix={self.ending!r}, seg_map_suffix='.png', reduce_zero_label=False)\n"
        )
        atomic_write(self.out / "metainfo.py", text.encode())


class NNUNet(Form):
    """nnU-Net v2's raw data set of 2-D RGB PNGs; 255 becomes its ignore label, C + 1."""

    def check(self) -> None:
        """Its files are told apart without case on some systems."""
        ids = Counter(item.id.lower() for item in self.masks.items)
        twice = sorted(name for name, number in ids.items() if number > 1)
        if twice:
            raise DataError(
                list_problems("ids that differ in case alone", {"ids": twice}, "Rename the images.")
            )

    def write(self, item: Masked, mask: np.ndarray) -> Mapping[str, int]:
        """See `Form`."""
        path = self.out / "imagesTr" / f"{item.id}_0000.png"
        if not path.is_file():
            save_png(path, read_image(item.image))
        labels = np.where(mask == IGNORE, len(self.classes) + 1, mask).astype(np.uint8)
        save_png(self.out / "labelsTr" / f"{item.id}.png", labels)
        return {}

    def close(self) -> None:
        """Writes dataset.json."""
        labels = {"background": 0, **{name: c + 1 for c, name in enumerate(self.classes)}}
        if self.ignored:
            labels["ignore"] = len(self.classes) + 1
        about = {
            "channel_names": {"0": "R", "1": "G", "2": "B"},
            "labels": labels,
            "numTraining": len(self.masks.items),
            "file_ending": ".png",
        }
        write_json(self.out / "dataset.json", about)


class HuggingFace(Form):
    """Hugging Face's imagefolder: photographs, and metadata.jsonl with a column for the mask."""

    def write(self, item: Masked, mask: np.ndarray) -> Mapping[str, int]:
        """See `Form`."""
        place_image(item, self.out / self.split)
        save_png(self.out / self.split / "masks" / f"{item.id}.png", mask)
        return {}

    def close(self) -> None:
        """Writes metadata.jsonl, whose `mask_file_name` becomes the column `mask`, and names of the ids."""
        rows = [
            {
                "file_name": f"{item.id}{ending_of(item)}",
                "mask_file_name": f"masks/{item.id}.png",
                "image_id": item.id,
            }
            for item in self.masks.items
        ]
        atomic_write(self.out / self.split / "metadata.jsonl", "\n".join(map(json.dumps, rows)).encode())
        write_json(self.out / "id2label.json", dict(enumerate(("background", *self.classes))))


class Coco(Form):
    """COCO's instances JSON: run lengths, an annotation for each class or connected part, `iscrowd` 0."""

    def __init__(self, out: Path, masks: MaskSet, instances: bool = False) -> None:
        super().__init__(out, masks, instances)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def write(self, item: Masked, mask: np.ndarray) -> Mapping[str, int]:
        """See `Form`."""
        from pycocotools import mask as codes

        name, number = place_image(item, self.out / "images").name, len(self.images) + 1
        height, width = mask.shape
        self.images.append({"id": number, "file_name": name, "height": height, "width": width})
        for label in classes_in(mask):
            for part in parts_of(mask == label) if self.instances else [mask == label]:
                code = codes.encode(np.asfortranarray(part.astype(np.uint8)))
                self.annotations.append(
                    {
                        "id": len(self.annotations) + 1,
                        "image_id": number,
                        "category_id": int(label),
                        "segmentation": {"size": [height, width], "counts": code["counts"].decode()},
                        "area": int(part.sum()),
                        "bbox": codes.toBbox(code).tolist(),
                        "iscrowd": 0,
                    }
                )
        return {LOST: int((mask == IGNORE).sum())}

    def check(self) -> None:
        """Pycocotools must be there."""
        if find_spec("pycocotools") is None:
            raise ConfigError("COCO's run lengths are written by pycocotools: pip install 'ribseg[coco]'")

    def close(self) -> None:
        """Writes the JSON."""
        categories = [{"id": c + 1, "name": name, "supercategory": ""} for c, name in enumerate(self.classes)]
        info = {"description": f"masks of ribseg {__version__}"}
        content = {
            "info": info,
            "images": self.images,
            "annotations": self.annotations,
            "categories": categories,
        }
        write_json(self.out / "annotations" / f"instances_{self.split}.json", content, indent=None)


class LabelMe(Form):
    """labelme's JSON beside the photographs: polygons; a part with a hole is cut into parts without."""

    def write(self, item: Masked, mask: np.ndarray) -> Mapping[str, int]:
        """See `Form`."""
        name = place_image(item, self.out).name
        shapes, cut = [], 0
        for group, label in enumerate(classes_in(mask), start=1):
            for whole in parts_of(mask == label):
                pieces = without_holes(whole)
                cut += len(pieces) > 1
                shapes += [
                    {
                        "label": self.classes[label - 1],
                        "points": outline_of(piece),
                        "group_id": group,
                        "shape_type": "polygon",
                        "flags": {},
                    }
                    for piece in pieces
                ]
        about = {
            "version": "6.3.1",
            "flags": {},
            "shapes": shapes,
            "imagePath": name,
            "imageData": None,  # the key must be there
            "imageHeight": mask.shape[0],
            "imageWidth": mask.shape[1],
        }
        write_json(self.out / f"{item.id}.json", about)
        return {LOST: int((mask == IGNORE).sum()), "parts with a hole, cut into several polygons": cut}


class VocColours(Form):
    """VOC as CVAT and Datumaro have it: labelmap.txt with colours, masks in these colours (RGB)."""

    def check(self) -> None:
        """The file's columns are separated by colons."""
        signs = ":#\n"
        wrong = [name for name in self.classes if any(sign in name for sign in signs)]
        if wrong:
            raise DataError(
                f"labelmap.txt cannot hold the names {wrong[:5]}: without {' '.join(signs)} it could"
            )

    def write(self, item: Masked, mask: np.ndarray) -> Mapping[str, int]:
        """See `Form`."""
        place_image(item, self.out / "JPEGImages")
        save_png(self.out / "SegmentationClass" / f"{item.id}.png", voc_palette()[mask])
        return {}

    def close(self) -> None:
        """Writes labelmap.txt and the list."""
        named = dict(enumerate(("background", *self.classes)))
        if self.ignored:
            named[IGNORE] = "ignored"
        rows = [f"{name}:{','.join(map(str, voc_palette()[number]))}::" for number, name in named.items()]
        text = "\n".join(["# label:color_rgb:parts:actions", *rows, ""])
        atomic_write(self.out / "labelmap.txt", text.encode())
        ids = "\n".join(item.id for item in self.masks.items)
        atomic_write(self.out / "ImageSets" / "Segmentation" / f"{self.split}.txt", f"{ids}\n".encode())


FORMS: dict[str, type[Form]] = {
    "mmseg": MMSegmentation,
    "nnunet": NNUNet,
    "hf": HuggingFace,
    "coco": Coco,
    "labelme": LabelMe,
    "voc": VocColours,
}


def ending_of(item: Masked) -> str:
    """The ending under which a photograph is written: its own, or .png for what is written anew."""
    ending = item.image.suffix.lower()
    with open_image(item.image) as image:
        kept = ending in IMAGE_ENDINGS and orientation(image) == 1
    return item.image.suffix if kept else ".png"


def place_image(item: Masked, folder: Path, ending: str | None = None) -> Path:
    """Copies a photograph under its id, or writes it upright as PNG; returns the file."""
    ending = ending or ending_of(item)
    path = folder / f"{item.id}{ending}"
    if path.is_file():
        return path
    if ending == item.image.suffix == ending_of(item):
        with atomic_file(path) as file, item.image.open("rb") as source:
            shutil.copyfileobj(source, file)
    else:
        save_png(path, read_image(item.image))
    return path


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Writes (H, W) gray or (H, W, 3) RGB uint8 as PNG, atomically, unless it is there.

    No reader takes gray ids for colours, as some do with a palette.
    """
    if not path.is_file():
        with atomic_file(path) as file:
            Image.fromarray(pixels).save(file, format="PNG")


def classes_in(mask: np.ndarray) -> list[int]:
    """The ids of classes in a mask."""
    return [int(i) for i in mask_ids(mask) if 0 < i < IGNORE]


def parts_of(region: np.ndarray) -> list[np.ndarray]:
    """The connected parts (8 neighbours) of an (H, W) bool region."""
    from scipy import ndimage

    numbers, count = ndimage.label(region, np.ones((3, 3)))
    return [numbers == number for number in range(1, count + 1)]


def without_holes(part: np.ndarray) -> list[np.ndarray]:
    """A connected region as regions without holes, cut through the first hole again and again."""
    from scipy import ndimage

    holes, count = ndimage.label(ndimage.binary_fill_holes(part) & ~part)
    if count == 0:
        return [part]
    columns = np.flatnonzero((holes == 1).any(0))
    left = np.zeros_like(part)
    left[:, : int(columns[len(columns) // 2]) + 1] = True
    halves = [*parts_of(part & left), *parts_of(part & ~left)]
    return [piece for half in halves for piece in without_holes(half)]


def outline_of(part: np.ndarray) -> list[list[float]]:
    """The polygon [x, y] through the centres of a connected region's outer pixels, at least three points.

    Filled with its outline, as labelme does, it gives the region.
    """
    import cv2

    contours, _ = cv2.findContours(part.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    points = contours[0][:, 0].astype(float).tolist()
    return [points[number % len(points)] for number in range(max(3, len(points)))]


def mask_set(
    folder: str | Path, images: str | Path, classes: Sequence[str] | None = None, split: str = "train"
) -> MaskSet:
    """The masks of a folder `<id>.png` with their photographs.

    Args:
        folder: of the masks.
        images: folder of the photographs `<id>.jpg|.jpeg|.png`.
        classes: names without background; None for those of a classes.txt in the folder, or above it.
        split: name of the list.

    Raises:
        DataError: masks lack their photograph, or there are no names.
    """
    names = class_names_of(folder) if classes is None else list(classes)
    if names is None:
        raise DataError(f"no names of the classes: expected classes.txt in {folder}, or --classes FILE")
    check_class_names(folder, names)
    check_names(names, f"the masks in {folder}")
    masks, photographs = scan_folder(Path(folder), (".png",)), scan_folder(Path(images), IMAGE_ENDINGS)
    absent = sorted(set(masks) - set(photographs))
    if absent:
        raise DataError(
            list_problems(f"{images} lacks images", {"masks without": absent}, "Add them, or --images.")
        )
    items = [Masked(i, Path(images, photographs[i]), Path(folder, masks[i])) for i in sorted(masks)]
    return MaskSet(tuple(names), items, split)
