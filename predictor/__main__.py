"""The command `python -m predictor`: list the stock runtimes, install their environments."""

import argparse
import json
import sys
import time
from collections.abc import Sequence

from predictor.environment import InstallError, ensure
from predictor.runtimes import DEFAULT_RUNTIME, RUNTIMES, Runtime, UnknownRuntimeError, get_runtime

_COLUMNS = (
    "name",
    "image",
    "version",
    "protocols",
    "python",
    "scikit_learn",
    "numpy",
    "joblib",
    "probability_output",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return the exit status."""
    options = _parser().parse_args(argv)
    try:
        if options.command == "install":
            for name in options.runtime or [DEFAULT_RUNTIME]:
                _install(get_runtime(name))
        elif options.json:
            sys.stdout.write(json.dumps([_row(runtime) for runtime in RUNTIMES.values()], indent=2) + "\n")
        else:
            _print_table()
    except (InstallError, UnknownRuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the command again to start over\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m predictor", description="KServe's stock scikit-learn runtimes."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("list", help="list the supported runtimes")
    show.add_argument("--json", action="store_true", help="print JSON")
    install = commands.add_parser(
        "install", help="install the pinned environment of runtimes, unless it is up to date"
    )
    install.add_argument("runtime", nargs="*", help=f"{' | '.join(RUNTIMES)} (default: {DEFAULT_RUNTIME})")
    return parser


def _install(runtime: Runtime) -> None:
    start = time.monotonic()
    python = ensure(runtime, progress=lambda line: _log(f"{runtime.name}: {line}"))
    _log(f"{runtime.name}: {python} ({time.monotonic() - start:.1f} s)")


def _log(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _row(runtime: Runtime) -> dict[str, str | list[str]]:
    return {column: _as_json(getattr(runtime, column)) for column in _COLUMNS}


def _as_json(value: str | tuple[str, ...]) -> str | list[str]:
    return value if isinstance(value, str) else list(value)


def _print_table() -> None:
    rows = [
        {name: value if isinstance(value, str) else " ".join(value) for name, value in _row(runtime).items()}
        for runtime in RUNTIMES.values()
    ]
    for column in _COLUMNS:
        label = column.replace("_", "-" if column == "scikit_learn" else " ")
        sys.stdout.write("  ".join([f"{label:<18}", *(f"{row[column]:<22}" for row in rows)]).rstrip() + "\n")


if __name__ == "__main__":
    sys.exit(main())
