"""Counts usable connections by the model behind them, and lists the versions that callers may ask for."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from transformer.batching.jobs import Job
from transformer.metrics import CONNECTIONS
from transformer.upstream.known_versions import KnownVersion, UpstreamModel

#: Label of connections whose calls may each reach another version.
ANY_VERSION = "any"
#: A version that has not answered for this long is not expected behind the predictor's address.
RECENT_S = 30.0


class UsableModels:
    """Counts usable connections by model, and remembers when each version last answered.

    Parameters
    ----------
    versions
        The versions that may be behind the connections, newest first.
    by_request
        True where each call may reach another version.
    on_change
        Called after a connection has become usable or has ceased to be.
    """

    def __init__(
        self, versions: Sequence[KnownVersion], *, by_request: bool, on_change: Callable[[], None]
    ) -> None:
        self.versions = versions
        self._by_request = by_request
        self._on_change = on_change
        self._now = asyncio.get_running_loop().time
        self._models: list[UpstreamModel] = []
        #: When a model with each version's encoding last answered, and when each version's own model did.
        self._last_encoding: dict[KnownVersion, float] = {}
        self._last_verified: dict[KnownVersion, float] = {}

    def __bool__(self) -> bool:
        return bool(self._models)

    @contextmanager
    def in_use(self, model: UpstreamModel) -> Iterator[None]:
        """Count a connection to a model as usable."""
        gauge = CONNECTIONS.labels(ANY_VERSION if self._by_request else model.label, "usable")
        self.saw(model)
        gauge.inc()
        self._models.append(model)
        self._on_change()
        try:
            yield
        finally:
            gauge.dec()
            self._models.remove(model)
            # Requests that only this connection could finish may start again on another.
            self._on_change()

    def saw(self, model: UpstreamModel) -> None:
        """Note that a model has answered."""
        self._last_encoding[model.version] = self._now()
        if model.verified:
            self._last_verified[model.version] = self._now()

    def recent_encodings(self) -> list[KnownVersion]:
        """Return the versions whose encoding a model has accepted within `RECENT_S`, newest first."""
        return self._recent(self._last_encoding)

    def recent_versions(self) -> tuple[str, ...]:
        """Return the names of the versions that have answered within `RECENT_S`, newest first."""
        return tuple(version.name for version in self._recent(self._last_verified))

    def verified_versions(self) -> tuple[str, ...]:
        """Return the names of the versions behind verified connections, newest first.

        Where each call may reach another version, these are the versions that have answered recently.
        """
        if not self._models:
            return ()
        if self._by_request:
            return self.recent_versions()
        found = {model.version for model in self._models if model.verified}
        return tuple(version.name for version in self.versions if version in found)

    def _recent(self, last: dict[KnownVersion, float]) -> list[KnownVersion]:
        since = self._now() - RECENT_S
        return [version for version in self.versions if last.get(version, -RECENT_S) > since]

    def has(self, model: UpstreamModel) -> bool:
        """Return True if a usable connection leads to the model."""
        return any(model.is_same_model(one) for one in self._models)

    def can_carry(self, job: Job) -> bool:
        """Return True if a connection can carry the job, as far as that is known before a call."""
        if self._by_request or not self._models:
            return True
        # Not any(): it takes longer, and this is asked for every request.
        for model in self._models:  # noqa: SIM110
            if job.accepts(model) and job.matrix(model.version) is not None:
                return True
        return False
