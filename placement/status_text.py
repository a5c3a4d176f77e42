"""The text of `placement status`: a line or a small table for each topic."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
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
        for number, line in enumerate(table_lines(rows)):
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
        yield "", list(_pods(components.get(component)))
        yield "", list(_processes(content, component, canary=False))
    if (canary := content["canary"]) is not None:
        yield "canary", [[f"{canary['uri']}, {canary['percent']} % of the traffic"]]
        for component in ("transformer", "predictor"):
            yield "", list(_processes(content, component, canary=True))
    if content["previous_uri"] is not None:
        yield "previous", [[content["previous_uri"]]]
    yield "connections", list(_connections(content))
    for one in content.get("drift", ()):
        yield "drift", list(_drift(one))
    yield "conditions", [[one["type"], one["status"], _reason(one)] for one in content["conditions"]]
    if cluster is not None and cluster["model_failure"] is not None:
        yield "model", [[cluster["model_failure"]]]


def _pods(component: Mapping[str, Any] | None) -> Iterator[Sequence[str]]:
    """Yield a component's replicas, or its revisions with their shares of the traffic; then its problems."""
    if component is None:
        return
    newest = component["newest"]
    if (replicas := component["replicas"]) is not None:
        yield [", ".join(_replicas(replicas, newest))]
    for share in component["traffic"]:
        yield [f"{share['percent']:>3} %", share["revision"], share["uri"] or "unknown bundle"]
    if newest is not None:
        yield from ([problem] for problem in newest["problems"])


def _replicas(replicas: Mapping[str, Any], newest: Mapping[str, Any] | None) -> Iterator[str]:
    updated = replicas["updated"]
    yield f"{updated} of {replicas['wanted']} replicas updated"
    if newest is None:
        yield f"{replicas['available']} available"
    else:
        yield f"{min(newest['ready'], updated)} of them ready"
    if (old := replicas["total"] - updated) > 0:
        yield f"{old} old"
    if newest is not None and newest["restarts"]:
        yield f"{newest['restarts']} restart{'s' if newest['restarts'] > 1 else ''}"


def _processes(content: Mapping[str, Any], component: str, *, canary: bool) -> Iterator[Sequence[str]]:
    """Yield a line for a local process that is not ready or was restarted, and its last words."""
    for one in content["processes"]:
        if (one["component"], one["canary"]) != (component, canary):
            continue
        if one["ready"] and not one["restarts"]:
            continue
        owner = f"{component}: " if canary else ""
        yield [f"{owner}{'ready' if one['ready'] else 'not ready'}, restarts: {one['restarts']}"]
        if (end := one["last_end"]) is not None:
            yield [f"at {datetime.fromisoformat(end['at']):%H:%M:%S} it {end['why']}"]
            yield [f"log {one['log']}"]


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
    if (rate := figures["selection_rate"]) is not None:
        yield ["selected", "", f"{rate:.1%}", "", ""]
    for name, share in figures["class_shares"].items():
        yield [f"predicted {name}", "", f"{share:.1%}", "", ""]
    for one in figures["groups"]:
        name = f"{one['field']} {one['group']}"
        yield [f"selected, {name}", "", f"{one['selection_rate']:.1%}", f"of {one['candidates']}", ""]
    for one in figures["impacts"]:
        yield [one["field"], "impact", f"{one['ratio']:.3f}", "", _alert(one["alert"])]


def _alert(alert: bool) -> str:
    return "ALERT" if alert else ""


def _reason(condition: Mapping[str, str]) -> str:
    return ": ".join(part for part in (condition["reason"], condition["message"]) if part)


def table_lines(rows: _Rows) -> list[str]:
    """Align the columns of rows; a row of one cell takes the whole line."""
    wide = [row for row in rows if len(row) > 1]
    widths = [max(map(len, column)) for column in zip(*wide, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        if len(row) > 1
        else row[0]
        for row in rows
    ]
