"""Matplotlib figures of maps and scores; functions return them, nothing is shown or written to files here.

In a notebook a returned figure is shown by naming it in the last line of a cell; `figure.savefig("maps.png")`
writes it.
"""

from ribseg.plot.gradients import gradient_figure, ratio_figure
from ribseg.plot.maps import draw, draw_outline, localization_figure, overlay, overlay_mask, steps_figure
from ribseg.plot.scores import (
    adaptation_figure,
    class_figure,
    coverage_figure,
    group_figure,
    threshold_figure,
)
from ribseg.plot.style import png_of, svg_of
from ribseg.plot.sweeps import grid_figure, sweep_figure

__all__ = [
    "adaptation_figure",
    "class_figure",
    "coverage_figure",
    "draw",
    "draw_outline",
    "gradient_figure",
    "grid_figure",
    "group_figure",
    "localization_figure",
    "overlay",
    "overlay_mask",
    "png_of",
    "ratio_figure",
    "steps_figure",
    "svg_of",
    "sweep_figure",
    "threshold_figure",
]
