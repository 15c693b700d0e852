"""Colours of figures, and figures as PNG and SVG."""

import io
import re
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAPS = "viridis"  # of localization maps: uniform in lightness, readable for colour-blind people and in gray
# Of lines and bars. Each has a contrast of at least 3 to white and to the report's dark background, and any
# two differ clearly with every kind of colour blindness (tests/test_plot.py computes both).
COLOURS = ("#727272", "#0098e5", "#cb7a28", "#bf009f", "#b28a62", "#a100f2")
DASHES = ("-", "--", "-.", ":")  # so that lines differ in gray, too
DARK = "#14171c"  # the report's dark background
BLACK, INK = "#000000", "#010203"  # replaced in `svg_of` by the colour of the page's text


def line_style(number: int) -> dict[str, Any]:
    """Colour and dashes of a figure's line, counted from 0; all combinations differ."""
    dashes = DASHES[(number + number // len(COLOURS)) % len(DASHES)]
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": dashes}


def png_of(figure: "Figure", dpi: int = 80) -> bytes:
    """A figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def svg_of(figure: "Figure", title: str) -> str:
    """A figure as an SVG element for a web page, in the page's own text colour, without a background.

    Args:
        figure: drawn with matplotlib's default colours for text and axes.
        title: read by screen readers.
    """
    import matplotlib as mpl
    from matplotlib.colors import same_color
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if same_color(text.get_color(), "black"):  # left out by matplotlib, as the default
            text.set_color(INK)
    buffer = io.StringIO()
    # Text stays text, so that it can be read aloud and searched; ids are the same in each run.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(INK, "currentColor").replace(BLACK, "currentColor")
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    label = escape(title, quote=True)
    return drawing.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
