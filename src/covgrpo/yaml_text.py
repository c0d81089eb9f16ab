"""YAML that means one thing: what YAML 1.1 reads otherwise than it looks is refused, with its line."""

import functools
import re
from pathlib import Path
from typing import Any

from covgrpo.errors import UserError

_MOST_NESTED = 50
_MOST_VALUES, _VALUE_CHARACTERS = 100_000, 100  # a text counts as a value for each hundred characters
# 1e-5 is a number here, as in YAML 1.2, and not text.
_EXPONENT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
_OCTAL = re.compile(r"[-+]?0[0-7_]+$")


class YamlError(ValueError):
    """What is wrong with a YAML text, and on which line of it (from 1; ``None`` where that is not known)."""

    def __init__(self, problem: str, line: int | None = None):
        super().__init__(problem)
        self.line = line


class AmbiguousError(YamlError):
    """It is YAML, but would be read as something else than it looks, or take minutes to read."""


@functools.cache
def _loader() -> Any:
    """YAML's safe loader, except for what it would read silently as something else."""
    import yaml

    class Loader(yaml.SafeLoader):
        def fetch_flow_collection_start(self, token_class: Any) -> None:
            if self.flow_level >= _MOST_NESTED:
                raise AmbiguousError(f"brackets are nested more than {_MOST_NESTED} deep", self.line + 1)
            super().fetch_flow_collection_start(token_class)

        def construct_document(self, node: Any) -> Any:
            _count(node, {})
            return super().construct_document(node)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            first: dict[str, int] = {}
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                if isinstance(key, yaml.ScalarNode):
                    line = key.start_mark.line + 1
                    if key.value in first:
                        raise AmbiguousError(f"key {key.value!r} stands on line {first[key.value]} already", line)
                    first[key.value] = line
            return super().construct_mapping(node, deep)

        def as_it_looks(self, node: Any) -> Any:
            kind = node.tag.rpartition(":")[2]
            value = getattr(self, f"construct_yaml_{kind}")(node)
            for base, found in (("60", ":" in node.value), ("8", _OCTAL.match(node.value) is not None)):
                if found:
                    raise AmbiguousError(
                        f"YAML reads {node.value} in base {base}, as {value}; write {value}, or quotes for the text",
                        node.start_mark.line + 1,
                    )
            return value

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
    for kind in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", Loader.as_it_looks)
    return Loader


def _count(node: Any, known: dict[int, int]) -> int:
    """Values below a node, those behind an alias as often as it stands: ten lines of aliases can mean billions.

    Raises:
        AmbiguousError: they are too many, or an alias stands in what it names.
    """
    if id(node) in known:
        if known[id(node)] < 0:
            raise AmbiguousError("an alias stands in what it names", node.start_mark.line + 1)
        return known[id(node)]
    known[id(node)] = -1
    if isinstance(node.value, str):
        found = 1 + len(node.value) // _VALUE_CHARACTERS
    else:
        found = 1
        for child in node.value:
            found += sum(_count(part, known) for part in (child if isinstance(child, tuple) else (child,)))
            if found > _MOST_VALUES:
                raise AmbiguousError(f"it has more than {_MOST_VALUES:,} values", node.start_mark.line + 1)
    known[id(node)] = found
    return found


def parse_yaml(text: str) -> Any:
    """Parse YAML text into plain values.

    Raises:
        YamlError: it is no YAML, nested too deep, has a key twice in one mapping, a number in base 60 (``1:30``) or
            base 8 (``010``), or aliases that mean too many values or themselves.
    """
    import yaml

    try:
        return yaml.load(text, Loader=_loader())  # noqa: S506 (a safe loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise YamlError(f"not valid YAML: {error.problem}", line) from error
    except RecursionError as error:
        raise YamlError("nested too deep") from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, YamlError):
            raise
        raise YamlError(f"not valid YAML: {' '.join(str(error).split())}") from error


def read_yaml(path: str) -> dict[str, Any]:
    """Read a YAML file of options.

    Raises:
        UserError: the file cannot be read or is no mapping; names file and line.
    """
    try:
        values = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read config {path}: {(error.strerror or str(error)).lower()}.") from error
    except YamlError as error:
        where = f"{path}, line {error.line}" if error.line else path
        raise UserError(f"config {where}: {error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"config {path}: not valid UTF-8 ({error.reason}, byte {error.start}).") from error
    if not isinstance(values, dict):
        raise UserError(f"config {path} must be a mapping of options, not {type(values).__name__}.")
    return values
