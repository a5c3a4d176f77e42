"""A real Prometheus scrapes real transformers: drift and bias fire alerts, and as many others do not."""

import asyncio
import contextlib
import math
import os
import random
import subprocess
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from placement.drift import read_drift
from predictor.process import PredictorProcess
from tests.support.dashboard_picture import draw
from tests.support.endpoints import V1_PREDICT
from tests.support.monitoring_overlay import debian_program, panels
from tests.support.prometheus_server import Prometheus, running_prometheus
from tests.support.sklearn_reference import SklearnReference
from tests.support.sync_processes import running_transformer
from tests.support.waiting import wait_until
from training.generator import generate

#: Candidates of each stream, and of each of its requests.
COUNT, SIZE = 1000, 50
#: Percentage points that are added to a field of the shifted stream.
FIELD, SHIFT = "mba_p", 8
WORKERS = {"unshifted": 2, "shifted": 2, "biased": 1}

#: File for a picture of the dashboard's panels: DASHBOARD_PICTURE=docs/monitoring.svg.
PICTURE = os.environ.get("DASHBOARD_PICTURE")

Rows = list[dict[str, Any]]


def with_rates(reference: SklearnReference, women: float, men: float) -> Rows:
    """Return candidates like those of the training, of whom these shares get a positive decision."""
    rows = generate(4 * COUNT, seed=7).candidates
    scores = reference.probabilities(rows)
    chosen: Rows = []
    for gender, share, rate in (("F", 0.3, women), ("M", 0.7, men)):
        for positive, part in ((True, rate), (False, 1 - rate)):
            some = [
                dict(row)
                for row, score in zip(rows, scores, strict=True)
                if row["gender"] == gender and (score >= 0.5) is positive
            ]
            count = round(COUNT * share * part)
            assert len(some) >= count
            chosen += some[:count]
    assert len(chosen) == COUNT
    random.Random(0).shuffle(chosen)
    return chosen


@pytest.fixture(scope="module")
def streams(sklearn_reference: SklearnReference) -> dict[str, Rows]:
    unshifted = with_rates(sklearn_reference, 0.7, 0.7)
    return {
        "unshifted": unshifted,
        "shifted": [{**row, FIELD: min(100, row[FIELD] + SHIFT)} for row in unshifted],
        "biased": with_rates(sklearn_reference, 0.4, 0.8),
    }


@contextlib.asynccontextmanager
async def scraped_streams(
    trained_bundle: Path, mlserver: PredictorProcess, streams: dict[str, Rows], directory: Path
) -> AsyncIterator[tuple[Prometheus, dict[str, str]]]:
    """Send each stream to a transformer of its own, once Prometheus has seen its counters at zero."""
    ports = (mlserver.http_port, mlserver.grpc_port)
    with contextlib.ExitStack() as stack:
        targets = {}
        for name, workers in WORKERS.items():
            arguments = (f"--workers={workers}", "--groups=gender")
            process = stack.enter_context(
                running_transformer(ports, trained_bundle, directory / f"{name}.log", *arguments)
            )
            targets[name] = f"127.0.0.1:{process.http_port}"
        async with running_prometheus(directory, targets) as prometheus:
            for name, rows in streams.items():
                for start in range(0, COUNT, SIZE):
                    await send(targets[name], rows[start : start + SIZE])
            yield prometheus, targets


async def send(address: str, rows: Rows) -> None:
    """Send a request over a new connection, so that every worker gets some."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{address}{V1_PREDICT}", json={"instances": rows}) as response,
    ):
        assert response.status == 200, await response.text()


async def metrics_of(address: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}/metrics") as response:
        return await response.text()


async def lints(address: str) -> str:
    """Return what promtool says about the names of the metrics."""
    text = await metrics_of(address)
    command = [debian_program("promtool"), "check", "metrics"]
    done = await asyncio.to_thread(subprocess.run, command, input=text, capture_output=True, text=True)
    return done.stdout + done.stderr


async def test_drift_and_bias_fire_alerts_that_name_the_field(
    trained_bundle, mlserver, sklearn_reference, streams, tmp_path
):
    async with scraped_streams(trained_bundle, mlserver, streams, tmp_path) as (prometheus, targets):

        async def all_are_counted() -> bool:
            counts = await prometheus.values("version:transformer_candidates:increase1d", "inferenceservice")
            return len(counts) == len(streams) and min(counts.values()) > 0.95 * COUNT

        await wait_until(all_are_counted, poll_s=0.2)

        async def fired() -> set[tuple[str, str, str]]:
            return {
                (one["inferenceservice"], one["alertname"], one.get("field", ""))
                for one in await prometheus.alerts()
            }

        expected = {("shifted", "CandidatesDrifted", FIELD), ("biased", "GroupSelectedLess", "gender")}

        async def as_expected() -> bool:
            return expected <= await fired()

        await wait_until(as_expected, poll_s=0.2)
        others = await fired() - expected
        assert {one for one in others if one[1] == "CandidatesDrifted"} == set()
        assert {one for one in others if one[0] == "unshifted"} == set()

        # Once all candidates are counted, the figures equal those computed from the raw values.
        expected_psi = {
            name: pytest.approx(psi(sklearn_reference, rows, FIELD), rel=0.02, abs=0.002)
            for name, rows in streams.items()
        }
        query = f'field:transformer_candidate_psi:increase1d{{field="{FIELD}"}}'

        async def figures_are_final() -> bool:
            return await prometheus.values(query, "inferenceservice") == expected_psi

        await wait_until(figures_are_final, poll_s=0.2)
        rates = await prometheus.values(
            'group:transformer_selection_rate:increase1d{inferenceservice="biased"}', "group"
        )
        assert (rates["F"], rates["M"]) == pytest.approx((0.4, 0.8), abs=0.02)

        for name, address in targets.items():
            await check_printed_figures(prometheus, name, address)

        for title, queries in panels().items():
            for query in queries:
                asked = query.replace('inferenceservice="placement"', 'inferenceservice="shifted"')
                assert await prometheus.query(asked), f"{title}: {asked}"

        if PICTURE is not None:
            await draw(prometheus, FIELD, "shifted", "biased", Path(PICTURE))

        for address in targets.values():
            assert await lints(address) == ""


async def check_printed_figures(prometheus: Prometheus, name: str, address: str) -> None:
    """Check that `placement status --drift` computes the rules' figures from one scrape."""
    (drift,) = read_drift([await metrics_of(address)])
    assert drift.candidates == COUNT
    (impact,) = drift.impacts
    assert drift.score_distance is not None
    printed: dict[tuple[str, str], dict[str, float]] = {
        ("field:transformer_candidate_psi:increase1d", "field"): {one.field: one.psi for one in drift.fields},
        ("version:transformer_candidate_score_distance:increase1d", "version"): {
            drift.version: drift.score_distance
        },
        ("field:transformer_disparate_impact:increase1d", "field"): {impact.field: impact.ratio},
    }
    for (rule, label), figures in printed.items():

        async def agree(rule: str = rule, label: str = label, figures: dict[str, float] = figures) -> bool:
            found = await prometheus.values(f'{rule}{{inferenceservice="{name}"}}', label)
            return found == pytest.approx(figures, rel=0.02, abs=0.002)

        await wait_until(agree, poll_s=0.2)


def psi(reference: SklearnReference, rows: Rows, field: str) -> float:
    """Return the population stability index of a field, from the raw values."""
    distribution = reference.bundle.distribution
    assert distribution is not None
    bins = distribution.numbers[field]
    values = np.array([row[field] for row in rows])
    total = 0.0
    for number, (low, high) in enumerate(pairwise(bins.edges)):
        last = number == len(bins.counts) - 1
        inside = (values >= low) & ((values < high) | last)
        now = max(float(np.mean(inside)), 1e-4)
        before = max(bins.counts[number] / distribution.rows, 1e-4)
        total += (now - before) * math.log(now / before)
    return total
