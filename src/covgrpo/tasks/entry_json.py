"""reasoning-gym entries as JSON and back, exactly.

Entries hold tuples, sets and dicts with integer keys, which plain JSON would turn into lists and string keys, and
some scorers notice. They are carried rather than rebuilt from (seed, index) in the worker: four datasets
(isomorphic_strings, polynomial_multiplication, ransom_note, word_ladder) iterate over sets of strings, so another
process builds another entry from the same seed; and one knight_swap entry takes a second to build.
"""

from typing import Any

_TAG = "!"  # {"!tuple": [...]}; a real key that begins with it sends its dict through the "!dict" form


def encode_entry(value: Any) -> Any:  # noqa: PLR0911 (one return a type)
    """``value`` in JSON types only, tagged so that :func:`decode_entry` gives an equal value back.

    Raises:
        TypeError: a type that is none of JSON's, tuple, set, frozenset or a numpy scalar or array.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return str(value) if isinstance(value, str) else value  # numpy's str_ is a str
    if isinstance(value, list):
        return [encode_entry(item) for item in value]
    if isinstance(value, tuple):
        return {"!tuple": [encode_entry(item) for item in value]}
    if isinstance(value, set | frozenset):
        return {"!set": [encode_entry(item) for item in sorted(value, key=repr)]}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith(_TAG) for key in value):
            return {str(key): encode_entry(item) for key, item in value.items()}
        return {"!dict": [[encode_entry(key), encode_entry(item)] for key, item in value.items()]}
    if hasattr(value, "tolist"):  # numpy, without importing it
        return encode_entry(value.tolist())
    raise TypeError(f"cannot carry a {type(value).__name__} as JSON")


def decode_entry(value: Any) -> Any:
    """The inverse of :func:`encode_entry`."""
    if isinstance(value, list):
        return [decode_entry(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "!tuple" in value:
        return tuple(decode_entry(item) for item in value["!tuple"])
    if "!set" in value:
        return {decode_entry(item) for item in value["!set"]}
    if "!dict" in value:
        return {decode_entry(key): decode_entry(item) for key, item in value["!dict"]}
    return {key: decode_entry(item) for key, item in value.items()}
