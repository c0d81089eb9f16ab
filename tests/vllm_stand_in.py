"""A stand-in for vLLM that draws as vLLM does: a generator for each request, seeded by the request's own seed."""

import importlib.machinery
import random
import sys
import types
from dataclasses import dataclass
from types import SimpleNamespace

RIGHT = 0.3  # probability that its policy answers rightly


@dataclass(frozen=True)
class SamplingParams:
    """As vLLM's, as far as it decides what is drawn."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int | None = None
    n: int = 1

    def __post_init__(self):
        assert self.seed is None or -(2**63) <= self.seed < 2**63, "vLLM takes no other seeds"


class LLM:
    """Completion ``i`` of a request is drawn with the request's seed plus ``i``; equal seeds draw the same."""

    handed: dict  # what it was called with

    def __init__(self, **options):
        type(self).handed = {"options": options, "conversations": [], "parameters": []}
        self.unseeded = random.Random(0)

    def chat(self, conversations, parameters, use_tqdm):
        each = [parameters] * len(conversations) if isinstance(parameters, SamplingParams) else list(parameters)
        assert len(each) == len(conversations)
        self.handed["conversations"] += conversations
        self.handed["parameters"] += each
        return [
            SimpleNamespace(outputs=[self._draw(messages, one, index) for index in range(one.n)])
            for messages, one in zip(conversations, each, strict=True)
        ]

    def _draw(self, messages, parameters, index):
        seed = parameters.seed
        generator = self.unseeded if seed is None else random.Random(seed + index)
        right, nonce = generator.random() < RIGHT, generator.getrandbits(64)
        text = f"{messages[-1]['content']} {nonce} \\boxed{{{int(right)}}}"
        ended = "length" if generator.random() < 0.5 else "stop"
        return SimpleNamespace(text=text, token_ids=[1, 2, 3], finish_reason=ended)


def put_in_place(monkeypatch) -> type[LLM]:
    """Let ``import vllm`` find the stand-in."""
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", module)
    return LLM
