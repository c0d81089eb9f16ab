"""What transformers calls a cache: ``cache`` from 5.24 on, ``past_key_values`` before and in code of a model's own."""

import inspect
from typing import Any


def cache_name(model: Any) -> str | None:
    """Return the argument of a model's forward that takes the cache; ``None`` where there is none."""
    taken = inspect.signature(type(model).forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in taken), None)


def cache_argument(model: Any, cache: Any) -> dict[str, Any]:
    """Return the keyword argument that hands a cache, or ``None`` for none, to a model's forward."""
    return {cache_name(model) or "past_key_values": cache}


def cache_of(output: Any) -> Any:
    """Return the cache in a model's output; transformers alone decides its name there."""
    return getattr(output, "cache" if hasattr(output, "cache") else "past_key_values")
