"""Debian's Prometheus and Alertmanager, which scrape transformers and evaluate the overlay's rules."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from predictor.child import ChildProcess
from predictor.process import free_ports
from tests.support.monitoring_overlay import debian_program, write_rules
from tests.support.waiting import wait_until


@dataclass(frozen=True)
class Prometheus:
    """A client of both servers."""

    session: aiohttp.ClientSession
    url: str
    alertmanager: str

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an expression now, each with its labels and its value."""
        async with self.session.get(f"{self.url}/api/v1/query", params={"query": expression}) as response:
            content = await response.json()
        assert content["status"] == "success", content
        found: list[dict[str, Any]] = content["data"]["result"]
        return found

    async def values(self, expression: str, label: str) -> dict[str, float]:
        """Return the value of each series by one of its labels."""
        return {one["metric"].get(label, ""): float(one["value"][1]) for one in await self.query(expression)}

    async def alerts(self) -> list[dict[str, str]]:
        """Return the labels of the alerts that reached the Alertmanager."""
        async with self.session.get(f"{self.alertmanager}/api/v2/alerts") as response:
            return [alert["labels"] for alert in await response.json()]


@contextlib.asynccontextmanager
async def running_prometheus(directory: Path, targets: Mapping[str, str]) -> AsyncIterator[Prometheus]:
    """Scrape addresses each second, by the name of their InferenceService, and evaluate the rules."""
    programs = debian_program("prometheus"), debian_program("prometheus-alertmanager")
    ports = free_ports(2)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    alertmanager = directory / "alertmanager.yaml"
    alertmanager.write_text(yaml.safe_dump({"route": {"receiver": "none"}, "receivers": [{"name": "none"}]}))
    configuration = directory / "prometheus.yaml"
    configuration.write_text(yaml.safe_dump(_configuration(directory, targets, addresses[1])))
    commands = [
        [
            programs[0],
            f"--config.file={configuration}",
            f"--storage.tsdb.path={directory / 'series'}",
            f"--web.listen-address={addresses[0]}",
        ],
        [
            programs[1],
            f"--config.file={alertmanager}",
            f"--storage.path={directory / 'alerts'}",
            f"--web.listen-address={addresses[1]}",
            "--cluster.listen-address=",
        ],
    ]
    async with contextlib.AsyncExitStack() as stack:
        for command in commands:
            stack.enter_context(ChildProcess(command, env={}, log=directory / "log"))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        prometheus = Prometheus(session, *(f"http://{address}" for address in addresses))

        async def is_ready() -> bool:
            try:
                for url in (prometheus.url, prometheus.alertmanager):
                    async with session.get(f"{url}/-/ready") as response:
                        if response.status != 200:
                            return False
            except aiohttp.ClientError:
                return False
            return len(await prometheus.query("up == 1")) == len(targets)

        await wait_until(is_ready, poll_s=0.2)
        yield prometheus


def _configuration(directory: Path, targets: Mapping[str, str], alertmanager: str) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(write_rules(directory, immediately=True))],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        "scrape_configs": [
            {
                "job_name": "transformers",
                "static_configs": [
                    {"targets": [address], "labels": {"inferenceservice": name}}
                    for name, address in targets.items()
                ],
            }
        ],
    }
