"""The reason of an end is one line of the output, and not the noise of a shutdown."""

import pytest

from predictor.last_words import describe_status, last_words, reason_of_end

UNLOADABLE = """\
2026-11-30 08:13:18,206 [mlserver][placement] INFO - Couldn't load model 'placement'. Model will be removed.
2026-11-30 08:13:18,211 [mlserver] ERROR - Some of the models failed to load during startup!
Traceback (most recent call last):
  File "mlserver/server.py", line 125, in start
    await asyncio.gather(
  File "mlserver_sklearn/sklearn.py", line 37, in load
    self._model = joblib.load(model_uri)
                  ^^^^^^^^^^^^^^^^^^^^^^
  File "pickle.py", line 1580, in find_class
    __import__(module, level=0)
ModuleNotFoundError: No module named 'churn_features'
2026-11-30 08:13:18,213 [mlserver.grpc] INFO - Waiting for gRPC server shutdown
INFO:     Shutting down
ERROR:    Traceback (most recent call last):
  File "uvicorn/lifespan/on.py", line 137, in receive
    return await self.receive_queue.get()
asyncio.exceptions.CancelledError

"""


def test_a_model_that_cannot_be_loaded_is_named_despite_the_noise_of_the_shutdown():
    expected = "cannot load the model: ModuleNotFoundError: No module named 'churn_features'"
    assert last_words(UNLOADABLE.splitlines()) == expected
    assert reason_of_end(0, UNLOADABLE.splitlines()) == expected


@pytest.mark.parametrize(
    "line",
    [
        "transformer: /mnt/models/bundle.json: No such file or directory",
        "python -m transformer: error: unrecognized arguments: --no_such_option",
        "RuntimeError: Failed to bind to address [::]:8081",
        "struct.error: unpack requires a buffer of 4 bytes",
        "KeyError",
    ],
)
def test_the_last_error_is_found(line):
    assert (
        last_words(["Traceback (most recent call last):", "ValueError: an earlier one", line, "bye"]) == line
    )


def test_without_an_error_the_last_line_is_the_reason():
    assert last_words(["loading", "x = y", ""]) == ""
    assert reason_of_end(1, ["loading", "cannot go on", ""]) == "cannot go on"
    assert reason_of_end(1, []) == ""


def test_a_process_that_was_killed_has_not_said_why():
    assert reason_of_end(137, UNLOADABLE.splitlines()) == ""
    assert describe_status(137) == "status 137 (SIGKILL: by hand, or for lack of memory)"
    assert describe_status(139) == "status 139 (SIGSEGV)"
    assert describe_status(1) == "status 1"
    assert describe_status(255) == "status 255"
