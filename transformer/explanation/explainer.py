"""Explains the predictions of one request: all its rows are scored by the one model that predicted."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from transformer.batching.jobs import Job, ModelGone
from transformer.batching.queue import LOW_PRIORITY_ROWS
from transformer.batching.scorer import Scorer
from transformer.bundle.candidates import Candidates
from transformer.bundle.encoder import Matrix
from transformer.bundle.explanation import Changes, Contributions, Explanation, ExplanationPart
from transformer.bundle.prediction import Prediction
from transformer.bundle.signature import plural
from transformer.errors import NotImplementedHere, PredictorTooSlow, QueueFull, TooLarge
from transformer.explanation.changes import changes
from transformer.explanation.contributions import contributions, join, rows_to_score
from transformer.explanation.game import Game, Scores, Scoring
from transformer.metrics import EXPLANATIONS, RETRIES
from transformer.settings import Settings
from transformer.upstream.known_versions import UpstreamModel

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class _Request:
    """One request to explain; `deadline` is a time of the event loop."""

    candidates: Candidates
    parts: Collection[ExplanationPart]
    headers: Mapping[str, str]
    version: str | None
    deadline: float


class Explainer:
    """Explains predictions with the version that is behind the predictor.

    Parameters
    ----------
    scorer
        Scores the candidates, and the rows that their explanations need.
    settings
        The settings of the process.
    """

    def __init__(self, scorer: Scorer, settings: Settings) -> None:
        self._scorer = scorer
        self._row_names = plural(scorer.bundle.row_name)
        self._settings = settings
        versions = scorer.bundle.versions
        self._games = {
            known.name: Game(version, version.background, known.encode)
            for version, known in zip(versions, scorer.known_versions, strict=True)
            if version.background is not None
        }
        #: Rows that the explanations in progress need.
        self._rows = 0

    @property
    def available(self) -> bool:
        """True if the newest version can be explained, and explanations are not turned off."""
        has_background = self._scorer.bundle.background is not None
        return has_background and self._settings.max_explained_candidates > 0

    def submit(
        self,
        candidates: Candidates,
        parts: Collection[ExplanationPart],
        headers: Mapping[str, str],
        version: str | None = None,
    ) -> asyncio.Task[Prediction]:
        """Start to predict and explain the candidates of one request.

        Parameters
        ----------
        parts
            What to explain.
        headers, version
            As `Scorer.submit`.

        Returns
        -------
        A task with the prediction and its explanation, or the `ServiceError` that says why there is none.

        Raises
        ------
        NotImplementedHere
            If explanations are turned off, or the newest version has no background rows.
        TooLarge
            If there are too many candidates.
        QueueFull
            If too many rows of explanations wait.
        ServiceError
            As `Scorer.submit`.
        """
        limit = self._settings.max_explained_candidates
        if not limit:
            raise NotImplementedHere("explanations are turned off here; ask for a prediction")
        newest = self._scorer.known_versions[0]
        game = self._game(newest.name)
        if candidates.rows > limit:
            raise TooLarge(
                f"too many {self._row_names} to explain: limit {limit}, got {candidates.rows}",
                limit="candidates to explain",
            )
        job = self._scorer.submit(candidates, headers, version, low_priority=True)
        matrix = job.matrix(newest)
        assert matrix is not None  # noqa: S101 (validated by this version)
        rows = sum(rows_to_score(game, row, self._settings.max_explanation_rows) for row in matrix)
        if self._rows and self._rows + rows > self._settings.max_waiting_explanation_rows:
            self._scorer.release(job)
            raise QueueFull(
                f"too many rows of explanations: limit {self._settings.max_waiting_explanation_rows}, "
                f"{self._rows} are waiting, got {rows} more; try again later",
                limit="explanation rows",
            )
        self._rows += rows
        task = job.loop.create_task(
            self._explain(_Request(candidates, parts, headers, version, job.deadline), job)
        )

        # Not at the task's end: a task that is cancelled before its first step has none.
        def release(_: asyncio.Task[Prediction]) -> None:
            self._rows -= rows
            self._scorer.release(job)

        task.add_done_callback(release)
        return task

    async def _explain(self, request: _Request, job: Job) -> Prediction:
        """Explain the answer to a job; if its model goes away meanwhile, start again with another."""
        while True:
            try:
                prediction = await job.answer
                explanation = await self._explain_answer(request, job, prediction)
            except ModelGone:
                RETRIES.labels("model gone").inc()
            else:
                EXPLANATIONS.labels(prediction.version).inc(prediction.rows)
                return replace(prediction, explanation=explanation)
            finally:
                self._scorer.release(job)
            job = self._scorer.submit(
                request.candidates,
                request.headers,
                request.version,
                low_priority=True,
                timeout_s=self._left_s(request),
            )

    async def _explain_answer(self, request: _Request, job: Job, prediction: Prediction) -> Explanation:
        model = job.model
        assert model is not None  # noqa: S101 (it has answered)
        game = self._game(model.version.name)
        matrix = job.matrix(model.version)
        assert matrix is not None  # noqa: S101 (this is what it has scored)
        max_rows = self._settings.max_explanation_rows
        found: list[Contributions] = []
        proposals: list[Changes] = []
        target = prediction.target
        turns = "changes" in request.parts and target.kind == "binary"
        for row, value in zip(matrix, prediction.values.tolist(), strict=True):
            if "contributions" in request.parts:
                found.append(await self._score(contributions(game, row, max_rows), model, value, request))
            if turns:
                search = changes(game, row, target.threshold, self._settings.fixed_fields, max_rows)
                proposals.append([] if value else await self._score(search, model, value, request))
        return Explanation(contributions=join(found) if found else None, changes=proposals if turns else None)

    async def _score(
        self, scoring: Scoring[_Result], model: UpstreamModel, answer: int, request: _Request
    ) -> _Result:
        """Score the rows that a computation asks for, and return its result.

        Parameters
        ----------
        answer
            The answer that is explained; of many classes, the place of the class.
        """
        try:
            rows = next(scoring)
            while True:
                rows = scoring.send(await self._scores(rows, model, answer, request))
        except StopIteration as end:
            result: _Result = end.value
            return result

    async def _scores(self, rows: Matrix, model: UpstreamModel, answer: int, request: _Request) -> Scores:
        """Score rows, as many in a job as fit into one call: other explanations take turns with this one."""
        size = min(self._settings.max_batch_rows, LOW_PRIORITY_ROWS)
        scores = []
        for start in range(0, len(rows), size):
            block = rows[start : start + size]
            found = await self._scorer.score(block, model, request.headers, self._left_s(request))
            scores.append(found.target.explained(found.values, found.probabilities, answer))
        return np.concatenate(scores)

    def _left_s(self, request: _Request) -> float:
        """Return the seconds to the deadline."""
        left_s = request.deadline - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise PredictorTooSlow(
                f"the explanation was not complete in time; ask for fewer {self._row_names}"
            )
        return left_s

    def _game(self, version: str) -> Game:
        game = self._games.get(version)
        if game is None:
            raise NotImplementedHere(
                f"version {version} has no background rows, which explanations need; train it again with "
                "`placement train`"
            )
        return game
