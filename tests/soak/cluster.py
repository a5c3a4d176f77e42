"""Situations in a real cluster: rollouts, applies, deletions and kills under load, each with an outcome."""

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.soak.rollouts import Outcome, Situation, answers_of, some_more
from tests.support.async_clients import NO_ANSWER, TRY_AGAIN
from tests.support.load import Tally, under_load
from tests.support.paths import MANIFEST, PLACEMENT
from tests.support.placement_command import CommandResult
from tests.support.real_cluster import ClusterNamespace
from tests.support.version_pairs import VersionPair
from transformer.bundle.format import UNVERIFIED

#: Beginnings of the reasons of requests that found no ready pod behind the Service.
NOT_CONNECTED = (f"{NO_ANSWER} ClientConnectorError", f"{NO_ANSWER} UNAVAILABLE failed to connect")


@dataclass(frozen=True)
class ClusterService:
    """The project's InferenceService in a namespace of a cluster, and two versions in its storage.

    Attributes
    ----------
    old, new
        URIs of the pair's versions.
    copies
        Directories of the versions, by URI, for storage that `placement` cannot read.
    kubeconfig
        For `placement`; by default the one with all rights.
    """

    namespace: ClusterNamespace
    pair: VersionPair
    old: str
    new: str
    copies: Mapping[str, Path] = field(default_factory=dict)
    kubeconfig: Path | None = None

    @classmethod
    def in_claim(cls, namespace: ClusterNamespace, pair: VersionPair) -> Self:
        """Return the service for versions in the namespace's claim."""
        old = namespace.upload(pair.old, "placement/v1")
        new = namespace.upload(pair.new, f"{pair.name}/v2")
        return cls(namespace, pair, old, new, {old: pair.old, new: pair.new})

    async def apply(self, uri: str) -> None:
        """Apply the spec with a version, as `kubectl apply` does, and wait until all pods have it."""
        await asyncio.to_thread(self.namespace.apply, MANIFEST.read_text(), uri)

    async def delete_pods(self, component: str, *, kill: bool = False) -> None:
        """Delete the pods of a component, and wait until others are ready."""
        await asyncio.to_thread(self.namespace.delete_pods, component, kill=kill)

    @contextlib.asynccontextmanager
    async def command(self, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """Start `placement` for this service."""
        process = await asyncio.create_subprocess_exec(
            PLACEMENT,
            *arguments,
            f"--namespace={self.namespace.name}",
            *(f"--bundle={uri}={copy}" for uri, copy in self.copies.items()),
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig or self.namespace.kubeconfig)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def placement(self, *arguments: str) -> CommandResult:
        """Run `placement` for this service."""
        async with self.command(*arguments) as process:
            stdout, stderr = await process.communicate()
        assert process.returncode is not None
        return CommandResult(process.returncode, stdout.decode(), stderr.decode())

    @contextlib.asynccontextmanager
    async def under_load(self, *, unverified: bool = False) -> AsyncIterator[Tally]:
        """Send requests while the block runs.

        Parameters
        ----------
        unverified
            True if a transformer may meet a model that its bundle does not describe.
        """
        may_answer = {label: [reference] for label, reference in self.pair.references.items()}
        if unverified and self.pair.same_encoding:
            may_answer[UNVERIFIED] = may_answer["v2"]
        address = self.namespace.address()
        async with under_load(self.pair, address.url, address.grpc, may_answer=may_answer) as tally:
            yield tally


ClusterSituation = Callable[[ClusterService, int], Awaitable[Outcome]]


async def rollout_and_rollback(service: ClusterService, some: int) -> Outcome:
    """`placement rollout` to the new version and `placement rollback`."""
    await service.apply(service.old)
    async with service.under_load() as tally:
        await some_more(tally, some)
        changes = [await service.placement("rollout", service.new)]
        await some_more(tally, some)
        changes.append(await service.placement("rollback"))
        await some_more(tally, some)
    outcome = Outcome(tally)
    for done in changes:
        outcome.expect(done.returncode == 0, f"a command failed: {done.stderr}")
    outcome.expect_no_failure()
    outcome.expect_answers("v1", "v2", at_least=some)
    return outcome


def applied(*, forward: bool, name: str) -> ClusterSituation:
    """Return a situation with a `kubectl apply` of both URIs: of the new version, or back to the old one.

    The new transformer knows both versions, so no request fails. The old one does not know the new version.
    """

    async def situation(service: ClusterService, some: int) -> Outcome:
        uris = (service.old, service.new) if forward else (service.new, service.old)
        await service.apply(uris[0])
        async with service.under_load(unverified=True) as tally:
            await some_more(tally, some)
            await service.apply(uris[1])
            await answers_of(tally, "v2" if forward else "v1", some)
        outcome = Outcome(tally)
        if forward:
            outcome.expect_no_failure()
        else:
            outcome.expect_no_failure_but_to_try_again()
        outcome.expect_answers("v1", "v2")
        return outcome

    situation.__name__ = name
    return situation


def pods_deleted(component: str, *, kill: bool, name: str) -> ClusterSituation:
    """Return a situation in which the only pod of a component is deleted, or killed at once."""

    async def situation(service: ClusterService, some: int) -> Outcome:
        await service.apply(service.old)
        async with service.under_load() as tally:
            await some_more(tally, some)
            await service.delete_pods(component, kill=kill)
            await answers_of(tally, "v1", some)
        outcome = Outcome(tally)
        # Without its predictor, a transformer serves on but is not ready.
        lost = (NO_ANSWER,) if component == "transformer" else NOT_CONNECTED
        allowed = (TRY_AGAIN, *lost)
        unexpected = [reason for reason in tally.failed if not reason.startswith(allowed)]
        outcome.expect(not unexpected, f"requests failed: {unexpected}")
        outcome.expect_answers("v1", at_least=some)
        return outcome

    situation.__name__ = name
    return situation


SITUATIONS: tuple[ClusterSituation, ...] = (
    rollout_and_rollback,
    applied(forward=True, name="apply_forward"),
    applied(forward=False, name="apply_back"),
    pods_deleted("transformer", kill=False, name="transformer_deleted"),
    pods_deleted("transformer", kill=True, name="transformer_killed"),
    pods_deleted("predictor", kill=False, name="predictor_deleted"),
    pods_deleted("predictor", kill=True, name="predictor_killed"),
)


def in_namespace(namespace: ClusterNamespace) -> list[Situation]:
    """Return the situations for `make soak`, all in one namespace."""

    def bound(situation: ClusterSituation) -> Situation:
        @functools.wraps(situation)
        async def run(pair: VersionPair, _: Path, some: int) -> Outcome:
            service = await asyncio.to_thread(ClusterService.in_claim, namespace, pair)
            return await situation(service, some)

        return run

    return [bound(situation) for situation in SITUATIONS]
