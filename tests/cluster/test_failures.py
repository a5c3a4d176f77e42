"""A rollout that cannot succeed is undone, says why, and costs no request."""

import asyncio
import shutil
import signal
from pathlib import Path

from tests.soak.cluster import ClusterService
from tests.soak.rollouts import Outcome, some_more
from tests.support.load import Tally
from tests.support.paths import MANIFEST
from tests.support.real_cluster import READY_S, SPEC_URI
from tests.support.waiting import wait_until
from transformer.bundle.format import MODEL_FILE

#: Requests before and after a change.
SOME = 60


def check(tally: Tally, situation: str) -> None:
    """Check that the old version has answered every request."""
    print(f"\n{situation}: {tally}")
    outcome = Outcome(tally)
    outcome.expect_no_failure()
    assert outcome.unexpected == []
    assert set(tally.answered) == {"v1"}


async def progress_line(process: asyncio.subprocess.Process, text: str) -> None:
    """Read progress until a line contains a text."""
    assert process.stderr is not None
    async for line in process.stderr:
        if text in line.decode():
            return
    raise AssertionError(f"{text} was never printed")


async def undone_rollout(service: ClusterService, uri: str) -> str:
    """Roll out a version that cannot serve; return the messages."""
    await service.apply(service.old)
    async with service.under_load() as tally:
        await some_more(tally, SOME)
        done = await service.placement("rollout", uri, f"--bundle={uri}={service.pair.new}")
        await some_more(tally, SOME)
    check(tally, f"{uri} undone")
    assert done.returncode == 1
    assert "the previous state is restored" in done.stderr
    return done.stderr


async def test_a_version_that_is_not_in_the_claim_is_undone_with_the_reason(service: ClusterService) -> None:
    assert "bundle.json" in await undone_rollout(service, "pvc://models/placement/v77")


async def test_a_model_that_does_not_load_is_undone_with_the_reason(
    service: ClusterService, tmp_path: Path
) -> None:
    broken = shutil.copytree(service.pair.new, tmp_path / "v2")
    (broken / MODEL_FILE).write_bytes(b"not a model")
    uri = service.namespace.upload(broken, "broken/v2")
    await undone_rollout(service, uri)


async def test_status_shows_why_new_pods_do_not_start(service: ClusterService) -> None:
    await service.apply(service.old)
    missing = "pvc://models/placement/v78"
    await asyncio.to_thread(service.namespace.change, MANIFEST.read_text(), missing)

    async def shows_the_reason() -> bool:
        return "bundle.json" in (await service.placement("status")).stdout

    await wait_until(shows_the_reason, timeout_s=READY_S, poll_s=1)


async def test_an_interrupted_rollout_is_undone(service: ClusterService) -> None:
    await service.apply(service.old)
    async with service.under_load() as tally:
        await some_more(tally, SOME)
        async with service.command("rollout", service.new) as process:
            await progress_line(process, f"predictor: {service.new}")
            process.send_signal(signal.SIGINT)
            _, errors = await process.communicate()
        await some_more(tally, SOME)
    assert process.returncode == 130
    assert errors.decode().rstrip().endswith("the previous state is restored")
    print(f"\ninterrupted: {tally}")
    outcome = Outcome(tally)
    outcome.expect_no_failure()
    assert outcome.unexpected == []


async def test_another_clients_change_ends_a_rollout_and_stays(service: ClusterService) -> None:
    await service.apply(service.old)
    async with service.command("rollout", service.new) as process:
        await progress_line(process, f"transformer: {service.new}")
        await progress_line(process, "transformer: ")
        manifest = MANIFEST.read_text().replace(SPEC_URI, service.old)
        await asyncio.to_thread(service.namespace.kubectl, "apply", "-f", "-", stdin=manifest)
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert "another client changed the InferenceService placement" in errors.decode()
    await asyncio.to_thread(service.namespace.wait_until_serving, service.old)
