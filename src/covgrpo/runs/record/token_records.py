"""A step's tokens as records of a run folder: histograms, the most damped tokens, completions token by token."""

from typing import Any

from torch import Tensor

from covgrpo.metrics import COVARIANCE_EDGES, WEIGHT_EDGES, StepTokens, histograms, most_damped

_DIGITS = 4
_LONGEST = 1024  # tokens of a completion that are kept


def histogram_record(step: int, tokens: StepTokens) -> dict[str, Any]:
    """Return the counts of c and of the weights, with the edges of their bins."""
    return {"step": step, **histograms(tokens), "c_edges": COVARIANCE_EDGES, "weight_edges": WEIGHT_EDGES}


def token_records(step: int, tokens: StepTokens, count: int, tokenizer: Any) -> list[dict[str, Any]]:
    """Return a record for each of the ``count`` most damped tokens, and what stands before it."""
    records = []
    for index in most_damped(tokens, count).tolist():
        row, position = int(tokens.row[index]), int(tokens.position[index])
        same = (tokens.row == row) & (tokens.position < position)
        before = tokens.token[same][tokens.position[same].argsort()][-8:]
        records.append(
            {
                "step": step,
                "text": tokenizer.decode([int(tokens.token[index])]),
                "before": tokenizer.decode(before.tolist()),
                "token": int(tokens.token[index]),
                "row": row,
                "position": position,
                "logp": _round(tokens.logps[index]),
                "advantage": _round(tokens.advantages[index]),
                "c": _round(tokens.c[index]),
                "weight": _round(tokens.weights[index]),
                "entropy": _round(tokens.entropies[index]),
            }
        )
    return records


def completion_record(tokens: StepTokens, row: int, tokenizer: Any) -> dict[str, Any]:
    """Return the tokens of completion ``row`` in order, with their numbers; empty where the step has none of it."""
    index = (tokens.row == row).nonzero()[:, 0]
    index = index[tokens.position[index].argsort()][:_LONGEST]
    if len(index) == 0:
        return {}
    return {
        "tokens": {
            "text": [tokenizer.decode([token]) for token in tokens.token[index].tolist()],
            "logp": _rounded(tokens.logps[index]),
            "c": _rounded(tokens.c[index]),
            "weight": _rounded(tokens.weights[index]),
            "entropy": _rounded(tokens.entropies[index]),
        }
    }


def _rounded(values: Tensor) -> list[float]:
    return [_round(value) for value in values]


def _round(value: Tensor) -> float:
    return float(f"{float(value):.{_DIGITS}g}")
