"""Flags made from a dataclass of options: one flag a field, its help beside its default."""

import argparse
import dataclasses
import types
import typing
from typing import Any

from covgrpo.errors import UserError
from covgrpo.yaml_text import AmbiguousError, YamlError, parse_yaml


def add_option_flags(parser: argparse.ArgumentParser, options: type) -> None:
    """Add a flag for every field; a flag that is not given leaves no trace in the namespace."""
    hints = typing.get_type_hints(options)
    sections: dict[str, argparse._ArgumentGroup] = {}
    for field in dataclasses.fields(options):
        section = field.metadata["section"]
        if section not in sections:
            sections[section] = parser.add_argument_group(section)
        _add_flag(sections[section], field, hints[field.name])


def given_options(args: argparse.Namespace, options: type) -> dict[str, Any]:
    """Return the options that were given as flags; KEY=VALUE pairs are merged into one mapping.

    Raises:
        UserError: a pair without ``=``, or a value that YAML reads as another number than it looks.
    """
    names = {field.name for field in dataclasses.fields(options)}
    found = {name: value for name, value in vars(args).items() if name in names}
    hints = typing.get_type_hints(options)
    for name, value in found.items():
        if typing.get_origin(hints[name]) is dict:
            found[name] = pairs(name, value)
    return found


def pairs(name: str, texts: list[str]) -> dict[str, Any]:
    """Return the KEY=VALUE pairs given with flag ``name``; of a key given twice the last counts.

    Raises:
        UserError: a pair without ``=``.
    """
    return dict(_pair(name, text) for text in texts)


def _add_flag(group: Any, field: dataclasses.Field[Any], hint: Any) -> None:
    flag = "--" + field.name.replace("_", "-")
    text = field.metadata["help"].replace("%", "%%")
    common = {"dest": field.name, "default": argparse.SUPPRESS}
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(kind for kind in kinds if kind is not type(None))
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=_with_default(text, field), **common)
    elif typing.get_origin(kind) is dict:
        group.add_argument(flag, action="append", metavar="KEY=VALUE", help=text + " Repeatable.", **common)
    elif typing.get_origin(kind) is list:
        item = typing.get_args(kind)[0]
        group.add_argument(flag, nargs="*", type=item, metavar={float: "X"}.get(item, "NAME"), help=text, **common)
    else:
        metavar = {int: "N", float: "X", str: "TEXT"}[kind]
        group.add_argument(flag, type=kind, metavar=metavar, help=_with_default(text, field), **common)


def _with_default(text: str, field: dataclasses.Field[Any]) -> str:
    if field.default is None or field.default == "" or isinstance(field.default, bool):
        on = " Default: yes." if field.default is True else ""
        return text + on
    return f"{text} Default: {field.default}."


def _pair(name: str, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--{name.replace('_', '-')} takes KEY=VALUE, not {text!r}.")
    try:
        return key, parse_yaml(value)
    except AmbiguousError as error:
        raise UserError(f"--{name.replace('_', '-')} {text:.60}: {error}.") from error
    except YamlError:
        return key, value
