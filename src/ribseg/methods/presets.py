"""Where RIB's paper and the released program differ (docs/method.md, section 3.2)."""

from dataclasses import dataclass

from ribseg.methods.pooling import GNDRP
from ribseg.types import Preset


@dataclass(frozen=True)
class Rules:
    """Differences between the presets; see the table in `ribseg.RIB`."""

    margin_bounds_loss: bool  # min(m, y_c) in the loss, instead of a stop rule
    area_keeps_first_view: bool  # of the step with the area stop, the first view's map is summed
    records_last: bool  # the maps under theta_K are summed, too
    pooling: GNDRP


PRESETS: dict[Preset, Rules] = {
    "official": Rules(False, True, False, GNDRP(0.4, "all", "official")),
    "paper": Rules(True, False, True, GNDRP(0.4, "kept", "paper")),
    "fixed": Rules(False, False, False, GNDRP(0.4, "all", "official")),
}
