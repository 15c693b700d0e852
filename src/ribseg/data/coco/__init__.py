"""COCO 2014: semantic masks, lists and labels from the instances."""

from ribseg.data.coco.prepare import prepare_coco as prepare_coco
