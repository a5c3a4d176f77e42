"""The way of one request, without a protocol: validate, then wait for a connection that can score it."""

from collections.abc import Mapping

from transformer.batching.jobs import Job
from transformer.batching.pool import Pool, PoolSettings
from transformer.bundle.candidates import Candidates
from transformer.bundle.format import Bundle
from transformer.bundle.prediction import Prediction
from transformer.bundle.validation import UnknownCategory
from transformer.headers import check_credentials
from transformer.upstream.client import PredictorAddress
from transformer.upstream.known_versions import known_versions


class Scorer:
    """Scores candidates by whichever of a bundle's versions is behind the predictor.

    Parameters
    ----------
    bundle
        The newest version and those before it. Requests are validated by the newest.
    address
        The predictor.
    timeout_s
        Seconds that a request may take.
    unknown_category
        Whether a value that the signature does not list is an error or encoded as none.
    settings
        How the connections to the predictor are made.
    """

    def __init__(
        self,
        bundle: Bundle,
        address: PredictorAddress,
        *,
        timeout_s: float,
        unknown_category: UnknownCategory = "refuse",
        settings: PoolSettings | None = None,
    ) -> None:
        self.bundle = bundle
        self.unknown_category: UnknownCategory = unknown_category
        self._versions = known_versions(bundle, unknown_category)
        self._address = address
        self._over_grpc = address.protocol == "grpc-v2"
        self._timeout_s = timeout_s
        self._settings = settings or PoolSettings()
        self._pool: Pool | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of all fields that any of the versions has."""
        return tuple(dict.fromkeys(name for v in self.bundle.versions for name in v.signature.names))

    @property
    def ready(self) -> bool:
        """Whether a prediction would succeed: a verified connection is there."""
        return self._pool is not None and self._pool.usable

    def start(self) -> None:
        """Begin to connect, inside the event loop that is to serve."""
        if self._pool is None:
            self._pool = Pool(self._versions, self._address, self._settings)
            self._pool.start()

    async def predict(self, candidates: Candidates, headers: Mapping[str, str]) -> Prediction:
        """Score the candidates of one request; `headers` go along to the predictor.

        Raises
        ------
        ServiceError
            Of the class that says why there is no prediction.
        """
        if self._over_grpc:
            check_credentials(headers)
        self.start()
        assert self._pool is not None  # noqa: S101 (just made)
        newest = self._versions[0]
        matrix = newest.encode(candidates)
        job = Job(candidates, newest, matrix, headers, self._pool.loop, self._timeout_s)
        return await self._pool.score(job)

    async def close(self) -> None:
        """Close the connections to the predictor."""
        if self._pool is not None:
            await self._pool.close()
            self._pool = None
