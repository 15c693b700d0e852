"""Where RIB's paper and the released program differ (docs/method.md, section 3.2)."""

from dataclasses import dataclass

from ribseg.methods.pooling import GNDRP
from ribseg.types import Preset


@dataclass(frozen=True)
class Rules:
    """Where the presets differ; see the table in `ribseg.RIB`."""

    margin_bounds_loss: bool  # min(m, y_c), against a stop rule
    area_keeps_first_view: bool  # the scale-1 map of the step that stops is summed, the others are not
    records_last: bool  # maps under theta_K are summed, too
    pooling: GNDRP


PRESETS: dict[Preset, Rules] = {
    "official": Rules(False, True, False, GNDRP(0.4, "all", "official")),
    "paper": Rules(True, False, True, GNDRP(0.4, "kept", "paper")),
    "fixed": Rules(False, False, False, GNDRP(0.4, "all", "official")),
}
