"""Exchange with other programs: files of PSA, IRN and similar ones, folders of PNGs, saliency maps, segments.

`python -m ribseg.interop --help` converts folders.
"""

from ribseg.interop.convert import check_imported, convert_arrays, convert_maps, map_reader, write_irn_maps
from ribseg.interop.folders import masks_to_maps
from ribseg.interop.labels import convert_labels
from ribseg.interop.pickled import read_irn_maps, read_psa_maps
from ribseg.interop.saliency import read_saliency, saliency_background
from ribseg.interop.segments import check_segment_file, read_segments

__all__ = [
    "check_imported",
    "check_segment_file",
    "convert_arrays",
    "convert_labels",
    "convert_maps",
    "map_reader",
    "masks_to_maps",
    "read_irn_maps",
    "read_psa_maps",
    "read_saliency",
    "read_segments",
    "saliency_background",
    "write_irn_maps",
]
