"""Sizes of models, for estimates without a network: from a folder's config.json, or known by name."""

from dataclasses import dataclass
from typing import Any

from covgrpo.files import load_json, user_path
from covgrpo.models.packaged import PACKAGED_MODELS


@dataclass(frozen=True)
class ModelShape:
    """A decoder's sizes.

    Args:
        layers: of the decoder.
        hidden: width of the residual stream.
        intermediate: width of the gated MLP.
        heads: query heads.
        key_heads: key and value heads.
        vocabulary: entries.
        context: positions at most.
        tied: input and output embeddings are one.
        head_size: of a head; ``hidden / heads`` where it is not given.

    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_heads: int
    vocabulary: int
    context: int
    tied: bool
    head_size: int | None = None

    @property
    def parameters(self) -> int:
        """Weights of embeddings, attention and gated MLPs; norms and biases, under 0.1 %, are left out."""
        head = self.head_size or self.hidden // self.heads
        attention = self.hidden * head * (2 * self.heads + 2 * self.key_heads)
        layer = attention + 3 * self.hidden * self.intermediate
        return self.layers * layer + self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values of one token, in two-byte numbers."""
        head = self.head_size or self.hidden // self.heads
        return 2 * 2 * self.layers * self.key_heads * head


# From the models' published config.json.
_QWEN_1_5B = {"layers": 28, "hidden": 1536, "intermediate": 8960, "heads": 12, "key_heads": 2, "vocabulary": 151_936}
_QWEN_7B = {"layers": 28, "hidden": 3584, "intermediate": 18_944, "heads": 28, "key_heads": 4, "vocabulary": 152_064}
KNOWN_SHAPES = {
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": ModelShape(**_QWEN_1_5B, context=131_072, tied=False),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": ModelShape(**_QWEN_7B, context=131_072, tied=False),
    "Qwen/Qwen2.5-1.5B-Instruct": ModelShape(**_QWEN_1_5B, context=32_768, tied=True),
    "Qwen/Qwen2.5-7B-Instruct": ModelShape(**_QWEN_7B, context=32_768, tied=False),
    "Qwen/Qwen2.5-Math-7B-Instruct": ModelShape(**_QWEN_7B, context=4096, tied=False),
    "smollm2-135m": ModelShape(30, 576, 1536, 9, 3, 49_152, 8192, True),
}


def shape_of(name: str) -> ModelShape | None:
    """The sizes of a model by name, or of a local folder; ``None`` where they are not known without a network."""
    if name in KNOWN_SHAPES:
        return KNOWN_SHAPES[name]
    folder = PACKAGED_MODELS[name].folder if name in PACKAGED_MODELS else user_path(name)
    path = folder / "config.json"
    try:
        config: dict[str, Any] = load_json(path)
        config = config.get("text_config", config)
        return ModelShape(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            heads=config["num_attention_heads"],
            key_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            vocabulary=config["vocab_size"],
            context=config["max_position_embeddings"],
            tied=bool(config.get("tie_word_embeddings", False)),
            head_size=config.get("head_dim"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
