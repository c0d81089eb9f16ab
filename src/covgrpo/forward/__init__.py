"""Forward passes without repeated work: every token once, padding left out, the vocabulary in tiles."""

from covgrpo.forward.attention_interface import attending_by, refuse_our_attention, serves_our_attention
from covgrpo.forward.errors import NotShareableError
from covgrpo.forward.group_cache import GroupCache
from covgrpo.forward.growing_cache import is_plain, with_room
from covgrpo.forward.shareable import why_not_shareable
from covgrpo.forward.shared_prompt import SharedPrompts, sharing_prompts
from covgrpo.forward.vocabulary_head import TiledVocabularyHead

__all__ = [
    "GroupCache",
    "NotShareableError",
    "SharedPrompts",
    "TiledVocabularyHead",
    "attending_by",
    "is_plain",
    "refuse_our_attention",
    "serves_our_attention",
    "sharing_prompts",
    "why_not_shareable",
    "with_room",
]
