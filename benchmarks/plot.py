"""Plot of a run's throughput: requests per second by number of clients, one line per system."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from benchmarks.results import Cell, Results, Spread
from benchmarks.systems import BY_NAME, OURS, OURS_CHOSEN

#: The systems in the plot, with the style of their lines.
_LINES: dict[str, dict[str, Any]] = {
    OURS_CHOSEN: {"color": "#0b6e4f", "linestyle": "--"},
    OURS: {"color": "#0b6e4f"},
    "litserve": {"color": "#c8553d"},
    "bentoml": {"color": "#6d597a"},
    "tutorial-workers": {"color": "#8a8a8a", "linestyle": "--"},
    "tutorial": {"color": "#8a8a8a"},
    "documented": {"color": "#2a6f97"},
}
_STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.marker": "o",
    "lines.markersize": 4,
    "svg.fonttype": "none",
    "svg.hashsalt": "benchmarks",
}


def write(results: Results, file: Path) -> None:
    """Write the plot as SVG: lines show medians, bars the minimum and maximum."""
    with mpl.rc_context(_STYLE):
        drawing = Figure(figsize=(10, 4.4), layout="constrained")
        FigureCanvasSVG(drawing)
        for position, candidates in enumerate((1, 100), start=1):
            axes = drawing.add_subplot(1, 2, position)
            for system, style in _LINES.items():
                _line(axes, results, system, candidates, style)
            axes.set(xscale="log", yscale="log", xlabel="clients", ylabel="requests per second")
            axes.set_title(f"{candidates} candidate{'' if candidates == 1 else 's'} per request", loc="left")
            axes.set_xticks([1, 16, 64, 256], labels=["1", "16", "64", "256"])
            axes.yaxis.set_major_formatter("{x:,g}")
            axes.minorticks_off()
        handles, labels = drawing.axes[0].get_legend_handles_labels()
        if handles:
            drawing.legend(handles, labels, loc="outside lower center", ncols=2)
        drawing.savefig(file, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})


def _line(axes: Any, results: Results, system: str, candidates: int, style: dict[str, Any]) -> None:  # noqa: ANN401
    points = []
    for cell in sorted(results.loads):
        spread = Spread.of(results.per_second(cell))
        if cell == Cell(system, cell.clients, candidates) and spread and spread.minimum > 0:
            points.append((cell.clients, spread))
    if not points:
        return
    medians = [spread.median for _, spread in points]
    errors = [
        [spread.median - spread.minimum for _, spread in points],
        [spread.maximum - spread.median for _, spread in points],
    ]
    clients = [number for number, _ in points]
    axes.errorbar(clients, medians, yerr=errors, label=BY_NAME[system].title, **style)
