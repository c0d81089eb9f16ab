"""The command line. Thin: it reads flags, calls the package, and prints."""

import argparse
import os
import sys
from collections.abc import Sequence

from covgrpo import __version__
from covgrpo.cpu_defaults import set_cpu_defaults
from covgrpo.errors import UserError
from covgrpo.packages import explain


def command_line() -> argparse.ArgumentParser:
    """Return the parser of ``covgrpo``."""
    from covgrpo.cli import bench, compare, demo, evaluate, listing, report, table, train

    parser = argparse.ArgumentParser(
        prog="covgrpo", description="Covariance-aware GRPO: train, evaluate, look inside.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"covgrpo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (demo, train, evaluate, compare, table, report, bench, listing):
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``covgrpo``; returns the exit code: 0, 2 for bad input, 130 or 143 when stopped by a signal."""
    args = command_line().parse_args(argv)
    args.words = list(sys.argv[1:] if argv is None else argv)
    _import_from_here()
    set_cpu_defaults()
    try:
        return int(args.run(args))
    except UserError as error:
        print(f"covgrpo: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (explained := explain(error, f"covgrpo {args.command}")) is None:
            raise
        print(f"covgrpo: {explained}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("covgrpo: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (such as `| head`); nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _import_from_here() -> None:
    """Find a user's own task and weighting in the current folder, as ``python -m covgrpo`` does; after all else."""
    if not sys.flags.safe_path and "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
