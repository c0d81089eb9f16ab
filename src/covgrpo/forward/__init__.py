"""Forward passes without repeated work: every token once, padding left out, the vocabulary in tiles."""

from covgrpo.forward.attention_interface import attending_by, refuse_our_attention, takes_our_attention
from covgrpo.forward.cache_name import cache_argument, cache_name, cache_of
from covgrpo.forward.group_cache import GroupCache
from covgrpo.forward.growing_cache import is_plain, make_growing
from covgrpo.forward.not_shareable import NotShareableError
from covgrpo.forward.shareable import saves_enough, why_not_shareable
from covgrpo.forward.shared_prompt import SharedPrompts, sharing_prompts
from covgrpo.forward.tiled_head import TiledVocabularyHead

__all__ = [
    "GroupCache",
    "NotShareableError",
    "SharedPrompts",
    "TiledVocabularyHead",
    "attending_by",
    "cache_argument",
    "cache_name",
    "cache_of",
    "is_plain",
    "make_growing",
    "refuse_our_attention",
    "saves_enough",
    "sharing_prompts",
    "takes_our_attention",
    "why_not_shareable",
]
