"""Exchange with other programs: files of PSA, IRN and similar ones, folders of PNGs, saliency maps, segments.

`python -m ribseg.interop --help` converts folders.
"""

from typing import TYPE_CHECKING

# The public names, see ribseg/__init__.py.
if TYPE_CHECKING:
    from ribseg.interop.convert import check_imported as check_imported
    from ribseg.interop.convert import convert_arrays as convert_arrays
    from ribseg.interop.convert import convert_maps as convert_maps
    from ribseg.interop.convert import map_reader as map_reader
    from ribseg.interop.convert import write_irn_maps as write_irn_maps
    from ribseg.interop.folders import masks_to_maps as masks_to_maps
    from ribseg.interop.labels import convert_labels as convert_labels
    from ribseg.interop.pickled import read_irn_maps as read_irn_maps
    from ribseg.interop.pickled import read_psa_maps as read_psa_maps
    from ribseg.interop.saliency import read_saliency as read_saliency
    from ribseg.interop.saliency import saliency_background as saliency_background
    from ribseg.interop.segments import check_segment_file as check_segment_file
    from ribseg.interop.segments import read_segments as read_segments
else:
    from ribseg.lazy import lazy_names

    __getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
