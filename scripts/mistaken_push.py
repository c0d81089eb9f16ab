"""What a weighting does to the mistakes of traces: the push on mistaken tokens before and after it, and their weights.

    python scripts/mistaken_push.py RUN        # a run on countdown with style=tries that kept its samples

The run keeps what is counted with `samples_per_step`: all of it with prompts_per_step x num_generations, else a few
completions a step, one of them chosen for its most damped token.

A token is mistaken if it holds a character with which the trace can no longer go on rightly, or is the end where there
is none (`covgrpo.tasks.countdown_mistakes`). |A| is what it is pushed by before weighting, w |A| after; times 1 - p it
is half the L1 norm of the token's gradient over the logits. Each token counts once: loss types that divide by a
completion's length weigh those of short ones more. `share`: of all tokens with an advantage; `kept`: sum w |A| over
sum |A|. Completions without an advantage are left out; right ones have a reward for correctness above 1/2.
"""

import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from damped_push import read_samples

from covgrpo.tasks.countdown_mistakes import find_mistakes, mistaken_characters
from covgrpo.tasks.countdown_tries import MAX_LENGTH

_QUESTION = re.compile(r"([0-9]+(?: [0-9]+)*)=([0-9]+)")
KEYS = [(completion, token) for completion in ("wrong", "right") for token in ("mistaken", "other")]


@dataclass
class Push:
    tokens: int = 0
    weight: float = 0.0  # sums over tokens, from here on
    before: float = 0.0
    after: float = 0.0
    gradient_before: float = 0.0
    gradient_after: float = 0.0

    def add(self, advantage: float, weight: float, p: float) -> None:
        self.tokens += 1
        self.weight += weight
        self.before += abs(advantage)
        self.after += weight * abs(advantage)
        self.gradient_before += abs(advantage) * (1 - p)
        self.gradient_after += weight * abs(advantage) * (1 - p)


def mistaken_tokens(numbers: list[int], target: int, completion: str, texts: list[str]) -> list[bool] | None:
    """For each token whether it is a mistake; None where their texts do not make up the completion, or it is too long.

    Args:
        numbers: the given ones.
        target: what they should make.
        completion: without special tokens.
        texts: of each token; the last may be a special one, which ends the completion.
    """
    starts, position = [], 0
    for text in texts:
        starts.append(position)
        if completion.startswith(text, position):
            position += len(text)
        elif len(starts) < len(texts):
            return None
    if position < len(completion) or len(completion) > MAX_LENGTH:
        return None
    ended = bool(texts) and starts[-1] == len(completion)
    marked = mistaken_characters(len(completion) + 1, find_mistakes(numbers, target, completion, ended))
    ends = [*starts[1:], len(completion) + ended]
    return [any(marked[start:end]) for start, end in zip(starts, ends, strict=True)]


def pushes(samples: Iterable[dict[str, Any]]) -> tuple[dict[tuple[str, str], Push], int]:
    """(completion, token) -> push, and the number of completions left out because their tokens could not be placed.

    Raises:
        ValueError: a prompt that asks no such question.
    """
    found: dict[tuple[str, str], Push] = defaultdict(Push)
    left_out = 0
    for sample in samples:
        question = _QUESTION.fullmatch(sample["prompt"])
        if question is None:
            raise ValueError(f"the prompt {sample['prompt']!r} is none of countdown with style=tries.")
        tokens = sample.get("tokens")
        if not sample["advantage"] or tokens is None:
            continue
        numbers = [int(number) for number in question[1].split(" ")]
        mistaken = mistaken_tokens(numbers, int(question[2]), sample["completion"], tokens["text"])
        if mistaken is None:
            left_out += 1
            continue
        completion = "right" if (sample["rewards"]["correctness"] or 0) > 0.5 else "wrong"
        for is_mistaken, logp, weight in zip(mistaken, tokens["logp"], tokens["weight"], strict=True):
            key = completion, "mistaken" if is_mistaken else "other"
            found[key].add(sample["advantage"], weight, math.exp(logp))
    return found, left_out


def table(found: dict[tuple[str, str], Push]) -> list[str]:
    names = ("before", "after", "gradient_before", "gradient_after")
    sums = {name: sum(getattr(push, name) for push in found.values()) for name in names}
    lines = [
        "| completion | token | tokens | share of abs(A) | of w abs(A) | kept "
        "| share of abs(A) (1 - p) | of w abs(A) (1 - p) | mean weight |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key in KEYS:
        if key in found:
            push = found[key]
            shares = [f"{getattr(push, name) / sums[name]:.3f}" if sums[name] else "" for name in names]
            cells = [*key, str(push.tokens), *shares[:2], f"{push.after / push.before:.3f}", *shares[2:]]
            lines.append(f"| {' | '.join(cells)} | {push.weight / push.tokens:.3f} |")
    return lines


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise SystemExit(__doc__)
    path = Path(arguments[0]) / "samples.jsonl"
    if not path.is_file():
        raise SystemExit(f"{path} is not there; name the folder of a run that kept samples (samples_per_step).")
    try:
        found, left_out = pushes(read_samples(path))
    except ValueError as error:
        raise SystemExit(f"{path}: {error}") from error
    print("\n".join(table(found)))
    if left_out:
        print(f"\n{left_out} completions left out: their tokens' texts do not make them up, or they are too long.")


if __name__ == "__main__":
    main(sys.argv[1:])
