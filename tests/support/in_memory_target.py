"""A rollout target in memory that records its steps."""

import asyncio
import contextlib
import dataclasses
import functools
import json
import random
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from inferenceservice.rollout_target import Canary, Progress, Scores, State, TargetError
from transformer.bundle.format import BUNDLE_FILE, Bundle, load_bundle

_read = functools.cache(load_bundle)


def ignore_progress(_: str) -> None:
    """Drop a line of progress."""


def scores_of_bundle(bundle: Bundle, candidates: Sequence[dict[str, Any]]) -> Scores:
    """Return a version's scores: those of its reference rows, and 0.5 for other candidates."""
    rows = zip(bundle.reference.candidates, bundle.reference.probabilities, strict=True)
    known = {str(dict(candidate)): score for candidate, score in rows}
    return Scores(tuple(known.get(str(one), 0.5) for one in candidates), bundle.version)


def unrelated_version(version: Path, directory: Path, name: str = "v9") -> Path:
    """Copy a version under another name, so that neither it nor any other version knows the other."""
    directory.mkdir(parents=True, exist_ok=True)
    content = json.loads((version / BUNDLE_FILE).read_text())
    (directory / BUNDLE_FILE).write_text(json.dumps({**content, "version": name, "previous": []}))
    return directory


class InMemoryTarget:
    """A rollout target that records its steps, and fails at one if a test asks for it.

    Attributes
    ----------
    steps
        Names of the steps, such as ``transformer v2``.
    during
        Called with the name of each step after its change, and with ``wait_until_idle``.
    scores
        Returns the scores of a bundle's version.
    """

    def __init__(self, uri: str | Path, fail: str | None = None, *, collocated: bool = False) -> None:
        self.now = State(str(uri), str(uri), collocated=collocated)
        self.fail = fail
        self.steps: list[str] = []
        self.unreadable: set[str] = set()
        self.scores: Callable[[Bundle, Sequence[dict[str, Any]]], Scores] = scores_of_bundle
        self.during: Callable[[str], Any] = lambda _: asyncio.sleep(0)
        self._dice = random.Random(0)
        self._change = ""

    async def _step(self, name: str, uri: str = "", **changes: Any) -> None:
        step = f"{name} {Path(uri).name}".strip()
        self.steps.append(step)
        if self.fail == step:
            self.fail = None
            raise TargetError(f"{name} failed")
        if "predictor_uri" in changes:
            changes = {"previous_uri": self.now.predictor_uri, "canary": None, **changes}
        self.now = dataclasses.replace(self.now, **changes)
        await self.during(step)

    @contextlib.asynccontextmanager
    async def exclusive(self, change: str) -> AsyncIterator[None]:
        if self._change:
            raise TargetError(f"{self._change} is in progress")
        self._change = change
        try:
            yield
        finally:
            self._change = ""

    async def state(self) -> State:
        return self.now

    async def read_bundle(self, uri: str) -> Bundle:
        if uri in self.unreadable:
            raise TargetError(f"{uri} is out of reach")
        try:
            return _read(uri)
        except Exception as error:
            raise TargetError(str(error)) from error

    async def set_transformer(self, uri: str, progress: Progress) -> None:
        await self._step("transformer", uri, transformer_uri=uri)

    async def set_predictor(self, uri: str, progress: Progress) -> None:
        await self._step("predictor", uri, predictor_uri=uri)

    async def set_both(self, uri: str, progress: Progress) -> None:
        await self._step("both", uri, transformer_uri=uri, predictor_uri=uri)

    async def require_canary_support(self) -> None:
        await self._step("check canary")

    async def set_canary(self, canary: Canary, progress: Progress) -> None:
        await self._step("canary", canary.uri, canary=canary)

    async def end_canary(self, progress: Progress) -> None:
        await self._step("end canary", canary=None)

    async def wait_until_idle(self) -> None:
        await self.during("wait_until_idle")

    async def score(self, candidates: Sequence[dict[str, Any]], name: str) -> Scores:
        assert name == "placement"
        uri, canary = self.now.predictor_uri, self.now.canary
        if canary is not None and self._dice.random() * 100 < canary.percent:
            uri = canary.uri
        await asyncio.sleep(0)
        return self.scores(_read(uri), candidates)
