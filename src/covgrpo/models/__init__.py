"""Models by name: built in, from a local folder, or from a hub.

Nothing here imports torch or transformers before a model is converted or loaded, so that listing is instant.
"""

from covgrpo.models.builtin import (
    BUILTIN_MODELS,
    BuiltinModel,
    ModelInfo,
    cache_root,
    is_cached,
    list_models,
    materialise,
)
from covgrpo.models.packaged import PACKAGED_MODELS, PackagedModel
from covgrpo.models.resolve import load_model, resolve_model

__all__ = [
    "BUILTIN_MODELS",
    "PACKAGED_MODELS",
    "BuiltinModel",
    "ModelInfo",
    "PackagedModel",
    "cache_root",
    "is_cached",
    "list_models",
    "load_model",
    "materialise",
    "resolve_model",
]
