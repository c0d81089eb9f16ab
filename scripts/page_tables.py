"""Tables made from kept records: printed, or put between two marks of a page of the docs."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from covgrpo.errors import UserError


def markdown(rows: Iterable[list[str]]) -> str:
    """A table in Markdown, its header first."""
    header, *others = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ["---"] * len(header), *others))


def inserted(page: str, text: str, marks: tuple[str, str]) -> str:
    """``page`` with ``text`` between two marks, each a line.

    Raises:
        UserError: the page does not hold both marks, in order.
    """
    first, last = marks
    before, found, rest = page.partition(first)
    _, ended, after = rest.partition(last)
    if not found or not ended:
        raise UserError(f"the file does not hold the lines {first.strip()!r} and {last.strip()!r}.")
    return f"{before}{first}{text}{last}{after}"


def run(
    script: str, text: str | None, make: Callable[[], str], marks: tuple[str, str], arguments: Sequence[str] | None
) -> int:
    """:func:`show` for a script with ``--write`` alone; ``text`` is what its ``--help`` says."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="FILE", help="file with the two marks between which the table goes")
    return show(script, make, marks, parser.parse_args(arguments).write)


def show(script: str, make: Callable[[], str], marks: tuple[str, str], page: str | None) -> int:
    """Print what ``make`` returns, or put it between the marks of ``page``: the script's exit code.

    What is wrong with the input is one line on stderr, and the page is left as it was.
    """
    try:
        text = make()
        if page is None:
            print(text, end="")
        else:
            path = Path(page)
            path.write_text(inserted(path.read_text(encoding="utf-8"), text, marks), encoding="utf-8")
    except (OSError, UserError) as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 2
    return 0
