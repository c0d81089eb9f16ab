"""Checks of an answer's text before a scorer evaluates it as Python. Nothing here evaluates anything."""

import ast
import re
from collections.abc import Callable, Iterator, Set
from functools import partial
from string import ascii_letters
from types import EllipsisType

_MAX_LENGTH = 20_000
_MAX_DEPTH = 500  # a sum of 500 terms is 500 deep
_LITERALS = (ast.List, ast.Tuple, ast.Set, ast.Dict, ast.UnaryOp, ast.UAdd, ast.USub, ast.Load)
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.UAdd, ast.USub)
_ARITHMETIC = (ast.BinOp, ast.UnaryOp, ast.Load, *_OPERATORS)
# without quotes, brackets, comments and escapes, sympy's tokens cannot differ from Python's
_ARITHMETIC_TEXT = re.compile(r"[\w \t\n.,+\-*/%()]+", re.ASCII)


def _is_expression_of(text: str, is_allowed: Callable[[ast.AST], bool]) -> bool:
    """``text`` is one expression of limited size, and ``is_allowed`` holds for each of its nodes."""
    if len(text) > _MAX_LENGTH:
        return False
    try:
        level: list[ast.AST] = [ast.parse(text.strip(), mode="eval").body]
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    for _ in range(_MAX_DEPTH):
        if not all(map(is_allowed, level)):
            return False
        level = list(_children(level))
        if not level:
            return True
    return False


def _children(nodes: list[ast.AST]) -> Iterator[ast.AST]:
    for node in nodes:
        yield from ast.iter_child_nodes(node)


def is_literal(text: str) -> bool:
    """Only numbers, strings, True, False and None, signs, and lists, tuples, sets and dicts of them."""

    def is_allowed(node: ast.AST) -> bool:
        if isinstance(node, ast.Constant):
            return not isinstance(node.value, bytes | EllipsisType)
        return isinstance(node, _LITERALS)

    return _is_expression_of(text, is_allowed)


def is_arithmetic(text: str, names: Set[str] = frozenset(), functions: Set[str] = frozenset()) -> bool:
    """Only integers, floats, ``+ - * / // % **``, parentheses, ``names``, and calls of ``functions``."""

    def is_allowed(node: ast.AST) -> bool:
        if isinstance(node, ast.Constant):
            return type(node.value) in (int, float)
        if isinstance(node, ast.Name):
            return node.id in names or node.id in functions
        if isinstance(node, ast.Call):
            return isinstance(node.func, ast.Name) and node.func.id in functions and not node.keywords
        return isinstance(node, _ARITHMETIC)

    return bool(_ARITHMETIC_TEXT.fullmatch(text)) and _is_expression_of(text, is_allowed)


_TRIGONOMETRIC = {"sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan"}
_HYPERBOLIC = {"sinh", "cosh", "tanh", "asinh", "acosh", "atanh"}
_FUNCTIONS = frozenset({"exp", "log", "ln", "sqrt", "abs", "Abs"} | _TRIGONOMETRIC | _HYPERBOLIC)

# x(2) is no call of these, and the letters that sympy has its own objects for (S, N, Q ...) do nothing uncalled
is_polynomial = partial(is_arithmetic, names=frozenset(ascii_letters))

is_elementary = partial(is_arithmetic, names=frozenset(ascii_letters) | {"pi", "C1", "C2"}, functions=_FUNCTIONS)


def is_queens_board(text: str) -> bool:
    """A board as text (names made of ``Q`` and ``_`` do nothing if evaluated) or as a list."""
    return set(text) <= set("_Q \n") or is_literal(text)
