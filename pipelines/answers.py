"""Check of a rolled out version: the service gives the answers that were evaluated."""

from collections.abc import Sequence

from inferenceservice.rollout_target import RolloutTarget
from pipelines.step import PipelineError
from training.candidates import Candidate
from training.stored import StoredVersion

#: Candidates of the check.
CHECKED_ROWS = 100


async def check_answers(target: RolloutTarget, uri: str, candidates: Sequence[Candidate]) -> int:
    """Ask the service for predictions, and compare them with those of the version that was evaluated.

    Parameters
    ----------
    candidates
        The first `CHECKED_ROWS` of these are sent.

    Returns
    -------
    Number of candidates that were compared.

    Raises
    ------
    PipelineError
        If another version answers, or the answers differ.
    TargetError
        If the service does not answer.
    """
    version = StoredVersion.load(uri)
    bundle, sent = version.bundle, list(candidates[:CHECKED_ROWS])
    _, expected = version.score(sent)
    given = await target.score(sent, bundle.name)
    if given.version != bundle.version:
        raise PipelineError(f"{given.version} answers, expected {bundle.version}; see `placement status`")
    if not bundle.target.same_answers(given.answers, bundle.target.recorded(expected)):
        raise PipelineError(
            f"{bundle.version} answers {len(sent)} held-out candidates differently from its evaluation; undo "
            "the rollout with `placement rollback`"
        )
    return len(sent)
