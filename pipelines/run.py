"""Run the pipeline on this machine, one process for each step, or compile it for Kubeflow.

Runs in the environment that `make pipeline` installs.
"""

import argparse
import contextlib
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from kfp import compiler, local

from pipelines.components import IMAGE
from pipelines.pipeline import CLAIM, make_pipeline
from pipelines.run_output import RunOutput
from storage.uris import local_path, uri_beside

COMPILED = Path(__file__).with_name("placement.yaml")
#: Exit status after Ctrl-C, as in shells.
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile the pipeline or run it, and return the exit status."""
    options = vars(_parser().parse_args(arguments))
    compiled, artifacts, verbose = options.pop("compile"), options.pop("artifacts"), options.pop("verbose")
    pipeline = make_pipeline(options.pop("image"), None if options.pop("s3") else CLAIM)
    if compiled is not None:
        try:
            compiler.Compiler().compile(pipeline, str(compiled))
        except (OSError, ValueError) as error:
            print(f"--compile: cannot write {compiled}: {error}", file=sys.stderr)
            return 2
        print(f"wrote {compiled}")
        return 0
    directory = artifacts / f"{datetime.now():%Y-%m-%d-%H-%M-%S-%f}"
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        print(f"--artifacts: cannot write {directory}: {error.strerror}", file=sys.stderr)
        return 2
    return _run(pipeline, options, directory, verbose=verbose)


def _run(pipeline: Any, parameters: Mapping[str, Any], directory: Path, *, verbose: bool) -> int:  # noqa: ANN401 (Kubeflow has no types)
    # The image's name does not matter here, and needs no "python" in it.
    warnings.filterwarnings("ignore", "You may be attemping", RuntimeWarning)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(directory))
    log = directory / "log.txt"
    with log.open("w", buffering=1) as file:
        output = RunOutput(file, sys.stdout, verbose=verbose)
        try:
            with contextlib.redirect_stdout(output):
                uri = pipeline(**parameters).output
        except KeyboardInterrupt:
            print(f"\ninterrupted; the log so far is {log}", file=sys.stderr)
            return _INTERRUPTED
        except RuntimeError as error:
            errors = output.failures or [str(error)]
            print(*errors, f"The full log is {log}", sep="\n", file=sys.stderr)
            return 1
    print(f"version   {uri}")
    print(f"report    {uri_beside(local_path(uri) or uri, '.html')}")
    print(f"artifacts {directory}")
    print(f"log       {log}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make pipeline", description=__doc__)
    parser.add_argument(
        "--compile",
        type=Path,
        nargs="?",
        const=COMPILED,
        metavar="FILE",
        help="write the pipeline for Kubeflow instead of running it",
    )
    parser.add_argument("--image", default=IMAGE, help=f"image of the compiled steps (default: {IMAGE})")
    parser.add_argument(
        "--s3", action="store_true", help="compile for versions in S3 instead of a PersistentVolumeClaim"
    )
    parser.add_argument(
        "--artifacts",
        type=Path,
        default=Path(".run/pipeline"),
        metavar="DIR",
        help="directory for the artifacts and the log of each run here (default: .run/pipeline)",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="print the whole log of a run here, not a line for each step"
    )
    parameters = parser.add_argument_group("parameters of a run; lists and objects are JSON, as in Kubeflow")
    pipeline = make_pipeline()
    for name, parameter in inspect.signature(pipeline.pipeline_func).parameters.items():
        default, described = parameter.default, pipeline.component_spec.inputs[name].description
        shown = "" if default == "" else f" (default: {_text(default)})"
        parameters.add_argument(
            f"--{name}", type=_reader(default), default=default, help=described + shown, metavar="VALUE"
        )
    return parser


def _text(default: object) -> str:
    return json.dumps(default) if isinstance(default, list | dict) else str(default)


def _reader(default: object) -> Callable[[str], Any]:
    return _json(type(default)) if isinstance(default, list | dict) else type(default)


def _json(kind: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:  # noqa: ANN401 (JSON)
        expected = "a list" if kind is list else "an object"
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise argparse.ArgumentTypeError(f"must be {expected} in JSON, got {text}") from error
        if not isinstance(value, kind):
            raise argparse.ArgumentTypeError(f"must be {expected} in JSON, got {text}")
        return value

    return read


if __name__ == "__main__":
    sys.exit(main())
