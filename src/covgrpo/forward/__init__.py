"""Forward passes without repeated work: prompts once a group, padding left out, the vocabulary in tiles."""

from covgrpo.forward.errors import NotShareableError
from covgrpo.forward.group_attention import attending_by_group
from covgrpo.forward.group_cache import GroupCache, refuse_groups, serves_groups
from covgrpo.forward.growing_cache import is_plain, with_room
from covgrpo.forward.shareable import why_not_shareable
from covgrpo.forward.shared_prompt import SharedPrompts, add_shared_prompt
from covgrpo.forward.vocabulary_head import TiledVocabularyHead

__all__ = [
    "GroupCache",
    "NotShareableError",
    "SharedPrompts",
    "TiledVocabularyHead",
    "add_shared_prompt",
    "attending_by_group",
    "is_plain",
    "refuse_groups",
    "serves_groups",
    "why_not_shareable",
    "with_room",
]
