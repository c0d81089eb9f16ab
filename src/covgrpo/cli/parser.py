"""An argument parser that answers a mistake with one sentence, and reads ``-1e-5`` as a number."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from covgrpo.errors import UserError
from covgrpo.suggest import nearest

_NEGATIVE_NUMBER = re.compile(r"-((\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?|inf|nan)$", re.IGNORECASE)
# What flags of these metavars take is a path or a name; none of them is empty.
_PATHS = ("FILE", "FOLDER", "STUDY", "RUN", "MODEL", "NAME|FILE")


class Parser(argparse.ArgumentParser):
    """argparse's, with its errors as :class:`UserError` and the nearest flag named for an unknown one."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})
        self._negative_number_matcher = _NEGATIVE_NUMBER  # argparse's own knows no exponents

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print below its usage.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.prog.partition(' ')[2]}: {message}.".removeprefix(": "))

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse's own swallows a full disk

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse a command line.

        Raises:
            UserError: it is wrong; one sentence.
        """
        command = self._command(words)
        # Before argparse: it complains of what is missing first, and that is often what a mistyped flag was to say.
        command._check_flags(words)
        args = self.parse_args(words)
        command._check_paths(args)
        return args

    def _command(self, words: Sequence[str]) -> "Parser":
        """The parser of the command that ``words`` begin with.

        Raises:
            UserError: there is no such command.
        """
        choices = next(action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction))
        if not words or words[0].startswith("-"):
            return self
        if words[0] not in choices:
            near = nearest(words[0], choices)
            hint = f"did you mean {near!r}?" if near else f"known: {', '.join(choices)}."
            raise UserError(f"command {words[0]!r} is unknown; {hint}")
        found: Parser = choices[words[0]]
        return found

    def _check_flags(self, words: Sequence[str]) -> None:
        known = self._option_string_actions
        for word in words:
            if word == "--":
                return
            flag = word.partition("=")[0]
            if word.startswith("--") and " " not in word and flag not in known:
                near = nearest(flag.replace("_", "-"), known)
                hint = f"; did you mean {near}?" if near else f" (see {self.prog} --help)."
                raise UserError(f"flag {flag} is unknown{hint}")

    def _check_paths(self, args: argparse.Namespace) -> None:
        for action in self._actions:
            value = getattr(args, action.dest, None)
            if action.metavar in _PATHS and (value == "" or (isinstance(value, list) and "" in value)):
                name = action.option_strings[-1] if action.option_strings else action.metavar
                raise UserError(f"{name} is empty; give a {str(action.metavar).lower()} or leave it out.")
