"""Picture of some of the dashboard's panels, drawn from what their queries return: docs/monitoring.svg."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from tests.support.monitoring_overlay import panels
from tests.support.prometheus_server import Prometheus

_NOW, _TRAINING, _LIMIT = "#0b6e4f", "#b8b8b8", "#c8553d"
_STYLE: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "monitoring",
}


async def draw(prometheus: Prometheus, field: str, drifted: str, biased: str, file: Path) -> None:
    """Draw three panels as SVG.

    Parameters
    ----------
    field
        The field whose values are drawn.
    drifted, biased
        InferenceServices with a drift in that field, and with decisions that differ by group.
    """

    async def ask(title: str, number: int, service: str, label: str) -> dict[str, float]:
        query = panels(field)[title][number].replace('"placement"', f'"{service}"')
        return await prometheus.values(query, label)

    drift = await ask("Drift by field", 0, drifted, "field")
    now = await ask("Values of $field", 0, drifted, "bin")
    training = await ask("Values of $field", 1, drifted, "bin")
    rates = await ask("Selection rate by group", 0, biased, "group")
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        FigureCanvasSVG(figure)
        first, second, third = figure.subplots(1, 3, width_ratios=(4, 4, 2))
        names = sorted(drift, key=drift.__getitem__)
        first.barh(names, [drift[name] for name in names], color=_NOW)
        first.axvline(0.25, color=_LIMIT, linewidth=1)
        first.set_title("Drift by field (PSI; alert above 0.25)", loc="left")
        bins = sorted(now, key=lambda text: float(text.partition(" ")[0]))
        for offset, shares, label, color in (
            (0.2, now, "now", _NOW),
            (-0.2, training, "training", _TRAINING),
        ):
            places = [place + offset for place in range(len(bins))]
            second.barh(places, [100 * shares[one] for one in bins], 0.4, label=label, color=color)
        second.set_yticks(range(len(bins)), labels=bins)
        second.set_title(f"Values of {field} (% of the candidates)", loc="left")
        second.legend(loc="lower right")
        groups = sorted(group for group in rates if rates[group])
        third.bar(groups, [100 * rates[group] for group in groups], 0.5, color=_NOW)
        third.set_title("Selection rate by group (%)", loc="left")
        third.set_ylim(0, 100)
        figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
