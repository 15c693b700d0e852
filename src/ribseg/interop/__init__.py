"""Exchange with other programs: IRN's files, folders of PNGs, saliency maps.

`python -m ribseg.interop --help` converts folders.
"""

from ribseg.interop.folders import convert_masks, convert_png_maps, maps_from_pngs, masks_to_maps
from ribseg.interop.irn import convert_irn_maps, read_irn_maps, write_irn_maps
from ribseg.interop.saliency import read_saliency, saliency_background

__all__ = [
    "convert_irn_maps",
    "convert_masks",
    "convert_png_maps",
    "maps_from_pngs",
    "masks_to_maps",
    "read_irn_maps",
    "read_saliency",
    "saliency_background",
    "write_irn_maps",
]
