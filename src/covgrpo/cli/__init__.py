"""The command line. Thin: it reads flags, calls the package, and prints."""

import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from covgrpo import __version__
from covgrpo.cpu_defaults import set_cpu_defaults
from covgrpo.errors import UserError
from covgrpo.packages import explain

if TYPE_CHECKING:
    from covgrpo.cli.parser import Parser

# A path that the system refuses to look at; what else goes wrong with a file is named where it is used.
_UNUSABLE = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP)


def command_line() -> "Parser":
    """Return the parser of ``covgrpo``."""
    from covgrpo.cli import bench, compare, demo, evaluate, listing, report, table, train
    from covgrpo.cli.parser import Parser

    parser = Parser(prog="covgrpo", description="Covariance-aware GRPO: train, evaluate, look inside.")
    parser.add_argument("--version", action="version", version=f"covgrpo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (demo, train, evaluate, compare, table, report, bench, listing):
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``covgrpo``; returns the exit code: 0, 2 for bad input, 130 or 143 when stopped by a signal."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # what its encoding lacks, such as half of a character, as an escape
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _answer(list(sys.argv[1:] if argv is None else argv))
        if sys.stdout is not None:  # None where it was closed
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of our output has gone (such as `| head`); nothing is left to say.
        _drop_output()
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        _drop_output()
        print("covgrpo: no space left for the output", file=sys.stderr)
        return 2


def _answer(words: list[str]) -> int:
    """Run a command line; its errors as a sentence. Imports are in here, so that they can be interrupted as well."""
    try:
        args = command_line().parse(words)
        args.words = words
        _import_from_here()
        set_cpu_defaults()
        return int(args.run(args))
    except UserError as error:
        return _refuse(str(error))
    except ModuleNotFoundError as error:
        if (explained := explain(error, f"covgrpo {args.command}")) is None:
            raise
        return _refuse(str(explained))
    except OSError as error:
        if error.errno not in _UNUSABLE or error.filename is None:
            raise
        return _refuse(f"cannot use {os.fsdecode(error.filename)} ({(error.strerror or str(error)).lower()}).")
    except KeyboardInterrupt:
        print("covgrpo: interrupted", file=sys.stderr)
        return 130
    except SystemExit as end:  # argparse's, after --help and --version
        return end.code if isinstance(end.code, int) else 0


def _refuse(sentence: str) -> int:
    """Say what is wrong in one line, whatever names and values stand in it; returns the exit code."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in sentence)
    print(f"covgrpo: {line}", file=sys.stderr)
    return 2


def _drop_output() -> None:
    """Let what is still to be written go nowhere, as the interpreter tries again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _import_from_here() -> None:
    """Find a user's own task and weighting in the current folder, as ``python -m covgrpo`` does; after all else."""
    if not sys.flags.safe_path and "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
