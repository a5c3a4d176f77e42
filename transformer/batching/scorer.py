"""Scores the candidates of one request of any protocol, and says which versions a caller may ask for."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from transformer.batching.jobs import Job
from transformer.batching.pool import Pool
from transformer.bundle.candidates import Candidates
from transformer.bundle.encoder import Matrix
from transformer.bundle.format import Bundle
from transformer.errors import UnknownVersion
from transformer.headers import check_credentials
from transformer.settings import Settings
from transformer.upstream.client import PredictorAddress
from transformer.upstream.known_versions import UpstreamModel, known_versions


class Scorer:
    """Scores candidates with the version that is behind the predictor.

    Parameters
    ----------
    bundle
        The newest version, which validates requests, and the versions before it.
    settings
        The settings of the process.
    model_name
        Name of the model, here and at the predictor.
    """

    def __init__(self, bundle: Bundle, settings: Settings, model_name: str) -> None:
        self.bundle = bundle
        self._settings = settings
        #: The versions that may be behind the predictor, newest first.
        self.known_versions = known_versions(bundle, settings.unknown_category)
        self._address = PredictorAddress.of(settings, model_name)
        self._pool: Pool | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of all fields of all versions."""
        return tuple(dict.fromkeys(name for v in self.bundle.versions for name in v.signature.names))

    @property
    def ready(self) -> bool:
        """True if a verified connection to the predictor is available."""
        return self._pool is not None and bool(self._pool.models)

    @property
    def versions(self) -> tuple[str, ...]:
        """Names of the versions behind verified connections, newest first."""
        return () if self._pool is None else self._pool.models.verified_versions()

    def check_version(self, version: str | None, *, recently: bool = False) -> None:
        """Refuse a version that no verified connection leads to.

        While there is no connection at all, every version in the bundle is accepted.

        Parameters
        ----------
        version
            The version; any if None.
        recently
            Accept a version, too, that a verified connection led to within `usable_models.RECENT_S`: during
            a canary that few connections reach, a request can wait for it.

        Raises
        ------
        UnknownVersion
            If the version is refused.
        """
        if version is None:
            return
        existing = self.versions if self.ready else tuple(one.name for one in self.known_versions)
        if version in existing:
            return
        if recently and self._pool is not None and version in self._pool.models.recent_versions():
            return
        raise UnknownVersion(self._address.model_name, version, existing)

    def start(self) -> None:
        """Start to connect. Must be called inside the event loop that serves."""
        self._started()

    def submit(
        self,
        candidates: Candidates,
        headers: Mapping[str, str],
        version: str | None = None,
        *,
        low_priority: bool = False,
        timeout_s: float | None = None,
    ) -> Job:
        """Queue the candidates of one request; `release` must follow once the job's answer is done.

        Parameters
        ----------
        headers
            Headers to forward to the predictor.
        version
            The only version that may answer; any if None. See `check_version`.
        low_priority
            Wait until no job of normal priority is in the queue.
        timeout_s
            Seconds until the caller gets an error; by default those in the settings.

        Raises
        ------
        ServiceError
            Of the class that says why there will be no prediction.
        """
        if self._settings.predictor_protocol == "grpc-v2":
            check_credentials(headers)
        pool = self._started()
        newest = self.known_versions[0]
        matrix = newest.encode(candidates)
        if timeout_s is None:
            timeout_s = self._settings.predictor_request_timeout_seconds
        job = Job(
            candidates, newest, matrix, headers, version, pool.loop, timeout_s, low_priority=low_priority
        )
        pool.submit(job)
        return job

    async def score(
        self, matrix: Matrix, model: UpstreamModel, headers: Mapping[str, str], timeout_s: float
    ) -> npt.NDArray[np.float64]:
        """Score encoded rows with low priority, and with one model only.

        Returns
        -------
        ndarray of float64, shape (rows,)
            Probability of the positive class.

        Raises
        ------
        ModelGone
            If no connection leads to the model any more.
        ServiceError
            As the answer to a job, see `transformer.batching.pool.Pool.submit`.
        """
        pool = self._started()
        job = Job(
            None, model.version, matrix, headers, None, pool.loop, timeout_s, low_priority=True, only=model
        )
        pool.submit(job)
        try:
            return (await job.answer).probabilities
        finally:
            self.release(job)

    def release(self, job: Job) -> None:
        """Drop a job that is done, or whose caller has gone."""
        if self._pool is not None:
            self._pool.remove(job)
        job.release()

    def queued(self) -> dict[str, int]:
        """Return the candidates in the queue by state; see `RequestQueue.rows`."""
        return {} if self._pool is None else self._pool.queued

    async def close(self) -> None:
        """Close the connections to the predictor."""
        if self._pool is not None:
            await self._pool.close()
            self._pool = None

    def _started(self) -> Pool:
        if self._pool is None:
            self._pool = Pool(self.known_versions, self._address, self._settings)
        return self._pool
