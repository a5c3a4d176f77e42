"""Situations with two versions at the same time, each under load, each with an outcome.

Each situation gets a pair of versions, a directory for logs, and the number of requests between changes.
"""

import asyncio
import contextlib
import math
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from inferenceservice.local.launch import TransformerProcess
from inferenceservice.rollout import rollback, rollout
from predictor.process import PredictorProcess, free_ports
from tests.support.answer_checker import TOLERANCE
from tests.support.async_clients import TRY_AGAIN
from tests.support.async_processes import (
    KNATIVE_ENV,
    SKLEARNSERVER,
    addresses,
    documented_transformer,
    running_predictor,
    running_service,
    running_transformer,
)
from tests.support.endpoints import V1_PREDICT
from tests.support.in_memory_target import ignore_progress
from tests.support.inference_service import with_arguments
from tests.support.load import Tally, under_load
from tests.support.load_balancers import (
    PRE_STOP_S,
    backend,
    balanced_by_connection,
    balanced_by_request,
    grpc_backends,
    rest_backends,
    wait_until_drained,
)
from tests.support.prometheus_samples import read_samples, sum_of
from tests.support.sklearn_reference import SklearnReference
from tests.support.version_pairs import VersionPair
from transformer.bundle.format import UNVERIFIED

#: Many short-lived connections, so that the shares of the versions can be measured.
SHORT_LIVES = "--predictor_connection_age=0.3"
#: The largest requests of the load take several calls, which may reach different models.
SMALL_CALLS = "--max_batch_rows=64"
#: So few that the predictions of other requests are not much slower on a small machine.
FEW_ROWS = "--max_explanation_rows=2000"


@dataclass
class Outcome:
    """Requests of the load, and unexpected results."""

    tally: Tally
    unexpected: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for verdict, answers in self.tally.faults.items():
            self.expect(False, f"{len(answers)} answers were {verdict}, such as {answers[:3]}")
        if self.tally.answered:
            self.expect(self.tally.several > 0, "no answer was to several candidates, so none could be mixed")

    def expect(self, condition: bool, otherwise: str) -> None:
        if not condition:
            self.unexpected.append(otherwise)

    def expect_no_failure(self) -> None:
        self.expect(not self.tally.failed, f"requests failed: {dict(self.tally.failed)}")

    def expect_no_failure_but_to_try_again(self) -> None:
        self.expect(set(self.tally.failed) <= {TRY_AGAIN}, f"requests failed: {dict(self.tally.failed)}")

    def expect_answers(self, *versions: str, at_least: int = 1) -> None:
        for version in versions:
            count = self.tally.answered[version]
            self.expect(count >= at_least, f"{version} gave {count} answers")

    def __str__(self) -> str:
        return f"{self.tally}{'; UNEXPECTED: ' + '; '.join(self.unexpected) if self.unexpected else ''}"


Situation = Callable[[VersionPair, Path, int], Awaitable[Outcome]]


async def some_more(tally: Tally, requests: int) -> None:
    """Wait for so many more requests."""
    enough = tally.requests + requests
    await tally.reach(lambda now: now.requests >= enough)


async def answers_of(tally: Tally, version: str, answers: int) -> None:
    """Wait until a version has given so many more answers."""
    enough = tally.answered[version] + answers
    await tally.reach(lambda now: now.answered[version] >= enough)


def rollout_and_rollback(*arguments: str, name: str) -> Situation:
    """Return a situation with a rollout and a rollback, in which no request fails; some ask why."""

    async def situation(pair: VersionPair, run: Path, some: int) -> Outcome:
        async with (
            running_service(pair, run, FEW_ROWS, *arguments) as local,
            under_load(pair, local.url, local.grpc_address, explains=True) as tally,
        ):
            await some_more(tally, some)
            new = await rollout(local, str(pair.new), ignore_progress)
            await answers_of(tally, new, some)
            old = await rollback(local, ignore_progress)
            await some_more(tally, some)
        outcome = Outcome(tally)
        outcome.expect_no_failure()
        outcome.expect_answers(old, new, at_least=some)
        return outcome

    situation.__name__ = name
    return situation


async def new_only_candidates_in_a_rollout(pair: VersionPair, run: Path, some: int) -> Outcome:
    """Candidates that only the new version accepts wait for it, or get 503; other candidates are answered."""
    async with (
        # A short deadline, so that they do not wait for long.
        running_service(pair, run, "--predictor_request_timeout_seconds=3") as local,
        under_load(pair, local.url, local.grpc_address) as tally,
    ):
        await some_more(tally, some)
        await local.set_transformer(str(pair.new), ignore_progress)
        async with under_load(
            pair,
            local.url,
            local.grpc_address,
            may_answer={"v2": [pair.references["v2"]]},
            new_only_candidates=True,
            clients=1,
        ) as new_only_candidates:
            await new_only_candidates.reach(lambda now: now.failed.total() >= 3)
            too_early = new_only_candidates.answered.total()
            await local.set_predictor(str(pair.new), ignore_progress)
            await new_only_candidates.reach(lambda now: now.answered["v2"] >= some // 4)
            await tally.reach(lambda now: now.answered["v2"] >= some)
            await local.set_predictor(str(pair.old), ignore_progress)
            before = new_only_candidates.failed.total()
            await new_only_candidates.reach(lambda now: now.failed.total() >= before + 3)
    others = Outcome(tally)
    others.expect_no_failure()
    others.expect_answers("v1", "v2", at_least=some)
    outcome = Outcome(new_only_candidates)
    outcome.expect_no_failure_but_to_try_again()
    outcome.expect(not too_early, f"{too_early} candidates were answered before a model accepted them")
    new_only_candidates.add(tally)
    return Outcome(new_only_candidates, list(dict.fromkeys(others.unexpected + outcome.unexpected)))


def apply_both(*late_s: tuple[float, float], name: str) -> Situation:
    """Return a situation that applies both components at once, to the new version and back.

    Requests may get 503 while the components do not match. Transformer and predictor start so many seconds
    late, to the new version and back.
    """
    out, back = late_s

    async def situation(pair: VersionPair, run: Path, some: int) -> Outcome:
        # The old version's bundle does not know the new model, but may know its encoding.
        may_answer = {label: [reference] for label, reference in pair.references.items()}
        if pair.same_encoding:
            may_answer[UNVERIFIED] = may_answer["v2"]
        async with (
            running_service(pair, run) as local,
            under_load(pair, local.url, local.grpc_address, may_answer=may_answer) as tally,
        ):
            await some_more(tally, some)
            await local.apply(with_arguments(storage_uri=str(pair.new)), ignore_progress, late_s=out)
            await some_more(tally, some)
            await local.apply(with_arguments(storage_uri=str(pair.old)), ignore_progress, late_s=back)
            await some_more(tally, some)
        outcome = Outcome(tally)
        outcome.expect_no_failure_but_to_try_again()
        outcome.expect_answers("v1", "v2")
        return outcome

    situation.__name__ = name
    return situation


async def canary_by_connection(pair: VersionPair, run: Path, some: int) -> Outcome:
    """Two predictor versions behind an address that sends each new connection to either (a Service)."""
    share = 0.3
    async with (
        running_predictor(pair.old, run / "old.log") as old,
        running_predictor(pair.new, run / "new.log") as new,
        balanced_by_connection(backend(old, 1 - share), backend(new, share)) as (_, port),
        running_transformer(pair.new, port, run / "transformer.log", SHORT_LIVES, SMALL_CALLS) as transformer,
        under_load(pair, *addresses(transformer)) as tally,
    ):
        await some_more(tally, 4 * some)
        connections = await verified_connections(addresses(transformer)[0])
    outcome = Outcome(tally)
    outcome.expect_no_failure()
    served = tally.answered["v2"] / tally.answered.total()
    # Four standard deviations of the share of so many connections: exceeded once in 15,000 times.
    tolerance = 0.03 + 4 * math.sqrt(share * (1 - share) / connections)
    outcome.expect(
        abs(served - share) <= tolerance,
        f"v2 gave {served:.1%} of the answers instead of {share:.0%} ± {tolerance:.1%}",
    )
    return outcome


async def verified_connections(url: str) -> float:
    """Return the number of connections that a transformer has verified."""
    return sum_of(await read_samples(url), "transformer_verifications_total", outcome="equal")


async def canary_by_request(pair: VersionPair, run: Path, some: int) -> Outcome:
    """Two versions behind a proxy that sends each request to either (Knative, a mesh): `--verify=request`."""
    async with (
        running_predictor(pair.old, run / "old.log", env=KNATIVE_ENV) as old,
        running_predictor(pair.new, run / "new.log", env=KNATIVE_ENV) as new,
        balanced_by_request([backend(old).address, backend(new).address]) as port,
        running_transformer(
            pair.new, port, run / "transformer.log", "--verify=request", SMALL_CALLS
        ) as transformer,
        under_load(pair, *addresses(transformer)) as tally,
    ):
        await some_more(tally, 4 * some)
    outcome = Outcome(tally)
    outcome.expect_no_failure()
    served = tally.answered["v2"] / tally.answered.total()
    outcome.expect(0.3 < served < 0.7, f"v2 gave {served:.1%} of the answers instead of half of them")
    return outcome


async def rolling_update(pair: VersionPair, run: Path, some: int) -> Outcome:
    """Three predictors behind one address are replaced one at a time, as a Deployment does; over V1."""
    async with contextlib.AsyncExitStack() as pods:

        async def pod(bundle: Path, number: int) -> PredictorProcess:
            log = run / f"{bundle.name}-{number}.log"
            return await pods.enter_async_context(running_predictor(bundle, log, SKLEARNSERVER))

        predictors = [await pod(pair.old, number) for number in range(3)]
        endpoints, port = await pods.enter_async_context(balanced_by_connection(*map(backend, predictors)))
        arguments = ("--predictor_protocol=v1", "--predictor_connections=6")
        transformer = await pods.enter_async_context(
            running_transformer(pair.new, port, run / "transformer.log", *arguments)
        )
        async with under_load(pair, *addresses(transformer)) as tally:
            for number in range(3):
                await some_more(tally, some)
                predictors.append(await pod(pair.new, number))
                leaving = predictors.pop(0)
                endpoints.backends = [*map(backend, predictors)]
                await wait_until_drained(endpoints, backend(leaving).address)
                await asyncio.to_thread(leaving.stop)
            before = tally.answered["v1"]
            await some_more(tally, some)
            late = tally.answered["v1"] - before
    outcome = Outcome(tally)
    outcome.expect_no_failure()
    outcome.expect_answers("v1", "v2", at_least=some)
    outcome.expect(not late, f"v1 gave {late} answers after its last predictor had gone")
    return outcome


async def apply_behind_services(pair: VersionPair, run: Path, some: int) -> Outcome:
    """Both pods are replaced at once, as `kubectl apply` does, while clients keep their connections."""
    may_answer = {label: [reference] for label, reference in pair.references.items()}
    if pair.same_encoding:
        # The old transformer knows the encoding of the new model.
        may_answer[UNVERIFIED] = may_answer["v2"]
    async with contextlib.AsyncExitStack() as pods:

        async def transformer(bundle: Path, name: str, *arguments: str) -> TransformerProcess:
            starting = running_transformer(
                bundle, predictor_port, run / f"{name}-transformer.log", *arguments
            )
            return await pods.enter_async_context(starting)

        old = await pods.enter_async_context(running_predictor(pair.old, run / "old.log"))
        predictors, predictor_port = await pods.enter_async_context(balanced_by_connection(backend(old)))
        leaving = await transformer(pair.old, "old", f"--shutdown_delay_seconds={PRE_STOP_S}")
        rest, rest_port = await pods.enter_async_context(balanced_by_connection(*rest_backends(leaving)))
        rpc, rpc_port = await pods.enter_async_context(balanced_by_connection(*grpc_backends(leaving)))
        urls = f"http://127.0.0.1:{rest_port}", f"127.0.0.1:{rpc_port}"
        async with under_load(pair, *urls, may_answer=may_answer) as tally:
            await some_more(tally, some)
            successor = await transformer(pair.new, "new")
            rest.backends, rpc.backends = rest_backends(successor), grpc_backends(successor)
            os.kill(leaving.pid, signal.SIGTERM)
            new = await pods.enter_async_context(running_predictor(pair.new, run / "new.log"))
            predictors.backends = [backend(new)]
            await asyncio.sleep(PRE_STOP_S)
            await asyncio.to_thread(old.stop)
            await answers_of(tally, "v2", some)
    outcome = Outcome(tally)
    outcome.expect_no_failure()
    outcome.expect_answers("v1", "v2", at_least=some)
    return outcome


async def killed_and_replaced(pair: VersionPair, run: Path, some: int) -> Outcome:
    """A predictor is killed during requests, and another version starts on the same port."""
    (port,) = free_ports(1)
    async with contextlib.AsyncExitStack() as stack:

        async def serve(bundle: Path, log: str) -> PredictorProcess:
            return await stack.enter_async_context(running_predictor(bundle, run / log, http_port=port))

        predictor = await serve(pair.old, "old.log")
        transformer = await stack.enter_async_context(
            running_transformer(pair.new, port, run / "transformer.log")
        )
        # The load ends before the last predictor stops: a stopping MLServer 1.7 keeps callers waiting.
        async with under_load(pair, *addresses(transformer)) as tally:
            await some_more(tally, some)
            for version, bundle, log in (("v2", pair.new, "new.log"), ("v1", pair.old, "again.log")):
                os.killpg(predictor.pid, signal.SIGKILL)
                await asyncio.to_thread(predictor.stop)
                predictor = await serve(bundle, log)
                await answers_of(tally, version, some)
    outcome = Outcome(tally)
    # The transformer notices at once that a call to a killed predictor is lost, so there is no 504.
    outcome.expect_no_failure_but_to_try_again()
    return outcome


async def unknown_models(pair: VersionPair, run: Path, some: int) -> Outcome:
    """Unknown models answer as `unverified`, or not at all with `--unknown_model=refuse`."""
    bundles = await asyncio.to_thread(lambda: pair.unknown_models)
    known = {"v2": [pair.references["v2"]]}
    async with contextlib.AsyncExitStack() as stack:
        new = await stack.enter_async_context(running_predictor(pair.new, run / "new.log"))
        unknown = [
            await stack.enter_async_context(running_predictor(bundle, run / f"{bundle.name}.log"))
            for bundle in bundles
        ]
        address, port = await stack.enter_async_context(
            balanced_by_connection(*map(backend, [new, *unknown]))
        )
        may_answer = {**known, UNVERIFIED: [SklearnReference(bundle) for bundle in bundles]}
        async with (
            running_transformer(pair.new, port, run / "serves.log", SHORT_LIVES, SMALL_CALLS) as transformer,
            under_load(pair, *addresses(transformer), may_answer=may_answer) as served,
        ):
            await some_more(served, 2 * some)
        address.backends = [*map(backend, unknown)]
        refusing = ("--unknown_model=refuse", SHORT_LIVES)
        async with running_transformer(
            pair.new, port, run / "refuses.log", *refusing, ready=False
        ) as transformer:
            async with under_load(pair, *addresses(transformer), may_answer={}) as refused:
                await some_more(refused, some)
            address.backends = [*map(backend, [new, *unknown])]
            async with under_load(pair, *addresses(transformer), may_answer=known) as chosen:
                await chosen.reach(lambda now: now.answered["v2"] >= some)
    outcome = Outcome(served)
    outcome.expect_no_failure()
    outcome.expect_answers("v2", UNVERIFIED)
    outcome.expect(not refused.answered, f"what is to be refused answered: {dict(refused.answered)}")
    for tally in (refused, chosen):
        outcome.unexpected += Outcome(tally).unexpected
        served.add(tally)
    outcome.expect_no_failure_but_to_try_again()
    return outcome


async def control_experiment(pair: VersionPair, run: Path, requests: int) -> int:
    """Count wrong answers of the documented transformer in the situation of `canary_by_connection`.

    It has the new version's encoding, so any answer that is not the new version's score is wrong: it comes
    from the old model with the new encoding.
    """
    (port,) = free_ports(1)
    new_scores = pair.references["v2"].probabilities(pair.candidates)
    async with (
        running_predictor(pair.old, run / "old.log", SKLEARNSERVER) as old,
        running_predictor(pair.new, run / "new.log", SKLEARNSERVER) as new,
        balanced_by_connection(backend(old), backend(new)) as (_, predictor_port),
        documented_transformer(pair.new, predictor_port, port, run / "documented.log"),
        aiohttp.ClientSession() as session,
    ):
        url = f"http://127.0.0.1:{port}{V1_PREDICT}"

        async def wrong(chosen: int) -> bool:
            body = {"instances": [pair.candidates[chosen]]}
            async with at_once, session.post(url, json=body) as response:
                assert response.status == 200, await response.text()
                ((_, probability),) = (await response.json())["predictions"]
            return bool(abs(probability - new_scores[chosen]) > TOLERANCE)

        # Several at once; otherwise all would share one connection and one predictor.
        at_once = asyncio.Semaphore(16)
        chosen = (number % len(pair.candidates) for number in range(requests))
        return sum(await asyncio.gather(*map(wrong, chosen)))


SITUATIONS: tuple[Situation, ...] = (
    rollout_and_rollback(name="rollout_and_rollback"),
    rollout_and_rollback("--predictor_protocol=grpc-v2", name="rollout_over_grpc"),
    new_only_candidates_in_a_rollout,
    # So late that the old transformer has no predictor that it knows.
    apply_both((20.0, 0.0), (0.0, 3.0), name="apply_out_transformer_late"),
    apply_both((0.0, 3.0), (20.0, 0.0), name="apply_out_predictor_late"),
    canary_by_connection,
    canary_by_request,
    rolling_update,
    apply_behind_services,
    killed_and_replaced,
    unknown_models,
)


def make_sense(situation: Situation, pair: VersionPair) -> bool:
    """Return True if a situation makes sense with a pair: retrained versions accept the same candidates."""
    return situation is not new_only_candidates_in_a_rollout or bool(pair.new_only_candidates)
