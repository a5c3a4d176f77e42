"""Metrics of a transformer, as Prometheus reads them."""

from collections.abc import Sequence

import aiohttp
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


async def read_samples(url: str) -> list[Sample]:
    """Read all samples of a transformer."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        families = text_string_to_metric_families(await response.text())
        return [sample for family in families for sample in family.samples]


def sum_of(samples: Sequence[Sample], name: str, **labels: str) -> float:
    """Add up the samples of a name that have these labels, and perhaps others."""
    return sum(
        sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()
    )


def registered() -> list[Sample]:
    """Return all samples of this process."""
    return [sample for metric in REGISTRY.collect() for sample in metric.samples]
