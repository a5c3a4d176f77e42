"""The text of `placement status`: a line or a small table for each topic."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_Rows = Sequence[Sequence[str]]


def status_lines(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a status, each topic under its name.

    Parameters
    ----------
    content
        Status as `placement status --json` prints it.
    """
    for name, rows in _topics(content):
        for number, line in enumerate(_table(rows)):
            yield f"{name if not number else '':<13}{line}".rstrip()


def _topics(content: Mapping[str, Any]) -> Iterator[tuple[str, _Rows]]:
    cluster = content.get("cluster")
    components: Mapping[str, Any] = {}
    if cluster is not None:
        yield "mode", [[cluster["mode"]]]
        components = {one["name"]: one for one in cluster["components"]}
    for component in ("transformer", "predictor"):
        uri: str = content[f"{component}_uri"]
        if component == "transformer" and content["collocated"]:
            uri += " (in the predictor's pod)"
        yield component, [[uri]]
        yield "", _pods(components.get(component))
    if (canary := content["canary"]) is not None:
        yield "canary", [[f"{canary['uri']}, {canary['percent']} % of the traffic"]]
    if content["previous_uri"] is not None:
        yield "previous", [[content["previous_uri"]]]
    yield "connections", list(_connections(content))
    for one in content.get("drift", ()):
        yield "drift", list(_drift(one))
    yield "conditions", [[one["type"], one["status"], _reason(one)] for one in content["conditions"]]
    if cluster is not None and cluster["model_failure"] is not None:
        yield "model", [[cluster["model_failure"]]]


def _pods(component: Mapping[str, Any] | None) -> _Rows:
    """Return a component's replicas, or its revisions with their shares of the traffic."""
    if component is None:
        return []
    if (pods := component["replicas"]) is not None:
        text = f"{pods['updated']} of {pods['wanted']} replicas updated, {pods['available']} available"
        old = pods["total"] - pods["updated"]
        return [[f"{text}, {old} old" if old > 0 else text]]
    return [
        [f"{share['percent']:>3} %", share["revision"], share["uri"] or "unknown bundle"]
        for share in component["traffic"]
    ]


def _connections(content: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for one in content["connections"]:
        owner = "canary's" if one["component"] == "canary" else ""
        yield [f"{one['count']:>3}", one["state"], one["version"], owner]
    if (reason := content["connections_unknown"]) is not None:
        yield [f"unknown: {reason}"]


def _drift(figures: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """Return the figures of one version."""
    training = figures["training_candidates"]
    compared = f"{training} of the training" if training is not None else "training unknown"
    yield [f"{figures['version']}: {figures['candidates']} candidates, {compared}"]
    for one in sorted(figures["fields"], key=lambda field: -field["psi"]):
        expected = f"by chance {one['expected']:.3f}"
        yield [one["field"], "PSI", f"{one['psi']:.3f}", expected, _alert(one["alert"])]
    if (distance := figures["score_distance"]) is not None:
        yield ["score", "distance", f"{distance:.3f}", "", _alert(figures["score_alert"])]
    yield ["selected", "", f"{figures['selection_rate']:.1%}", "", ""]
    for one in figures["groups"]:
        name = f"{one['field']} {one['group']}"
        yield [f"selected, {name}", "", f"{one['selection_rate']:.1%}", f"of {one['candidates']}", ""]
    for one in figures["impacts"]:
        yield [one["field"], "impact", f"{one['ratio']:.3f}", "", _alert(one["alert"])]


def _alert(alert: bool) -> str:
    return "ALERT" if alert else ""


def _reason(condition: Mapping[str, str]) -> str:
    return ": ".join(part for part in (condition["reason"], condition["message"]) if part)


def _table(rows: _Rows) -> list[str]:
    """Align the columns of rows; a row of one cell takes the whole line."""
    wide = [row for row in rows if len(row) > 1]
    widths = [max(map(len, column)) for column in zip(*wide, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        if len(row) > 1
        else row[0]
        for row in rows
    ]
