"""Convert Matplotlib figures to inline SVG with the colours and the font of the page around it."""

import io
import re
from contextlib import AbstractContextManager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Matplotlib has no CSS variables: each colour is drawn as a placeholder, which `inline` replaces.
INK, MUTED, LINE, POSITIVE, NEGATIVE, ACCENT = (f"#a1b2c{digit}" for digit in range(1, 7))
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    POSITIVE: "var(--positive)",
    NEGATIVE: "var(--negative)",
    ACCENT: "var(--accent)",
}
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "hatch.color": LINE,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 2,
    "svg.fonttype": "none",
    "text.color": INK,
    # A category such as "$50" is no formula.
    "text.parse_math": False,
    "xtick.color": LINE,
    "xtick.labelcolor": MUTED,
    "xtick.labelsize": 9,
    "ytick.color": LINE,
    "ytick.labelcolor": MUTED,
    "ytick.labelsize": 9,
}


def style() -> AbstractContextManager[None]:
    """Context manager for making figures and converting them to SVG."""
    return mpl.rc_context(_STYLE)


def figure(width: float, height: float) -> Figure:
    """Make an empty figure without pyplot's global state; sizes in inches."""
    made = Figure(figsize=(width, height))
    FigureCanvasSVG(made)
    return made


def inline(drawn: Figure, name: str, description: str) -> str:
    """Convert a figure to an ``<svg>`` element that fills its container's width.

    Parameters
    ----------
    name
        Unique name on the page, so that the figures' internal references do not collide.
    description
        Text for screen readers.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = _without_unused_ids(text)
    text = re.sub(r'font: ([0-9.]+)px [^;"]*', r"font-size: \1px", text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, variable)
    head = re.search(r'viewBox="([^"]*)"', text)
    viewbox = head[1] if head else "0 0 1 1"
    opening = f'<svg role="img" aria-label="{escape(description)}" viewBox="{viewbox}">'
    opening += f"<title>{escape(description)}</title>"
    return re.sub(r"\n\s*", "\n", opening + text[text.index(">") + 1 :])


def _without_unused_ids(text: str) -> str:
    """Remove the ids that nothing refers to, because figures on one page share names like axes_1."""
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    return re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
