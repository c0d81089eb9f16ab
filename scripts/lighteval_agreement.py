"""Score completions with lighteval's own extraction and comparison, and list where it disagrees with covgrpo.

    covgrpo eval --benchmark problems.jsonl --completions completions.jsonl --scores ours.jsonl
    python scripts/lighteval_agreement.py problems.jsonl completions.jsonl ours.jsonl    # in an environment of its own

lighteval 0.13 wants latex2sympy2_extended 1.0.6 and math-verify 0.9 a newer one, so the two have an environment each;
this script needs lighteval alone. Metric: lighteval's `expr_gold_metric` where the gold answer is a number, else its
LaTeX counterpart, as in open-rs, with which the paper evaluated.
"""

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from lighteval.metrics.dynamic_metrics import MultilingualExtractiveMatchMetric
from lighteval.metrics.utils.extractive_match_utils import ExprExtractionConfig, LatexExtractionConfig
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.requests import Doc

NUMBER = re.compile(r"-?[\d,]*\.?\d+")


def metric(gold: Any) -> MultilingualExtractiveMatchMetric:
    return MultilingualExtractiveMatchMetric(
        fallback_mode="first_match",
        precision=5,
        gold_extraction_target=(gold,),
        pred_extraction_target=(ExprExtractionConfig(), LatexExtractionConfig(boxed_match_priority=0)),
        aggregation_function=max,
    )


METRICS = {"number": metric(ExprExtractionConfig()), "latex": metric(LatexExtractionConfig())}


def lines(path: str) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def score(gold: str, completion: str) -> tuple[float, list[str]]:
    kind = "number" if NUMBER.fullmatch(gold) else "latex"
    doc = Doc(query="", choices=[gold if kind == "number" else f"${gold}$"], gold_index=0)
    try:
        found = METRICS[kind].compute(doc=doc, model_response=ModelResponse(text=[completion]))
    except Exception as error:
        return 0.0, [f"{type(error).__name__}: {error}"]
    return float(found), (doc.specific or {}).get("extracted_predictions", [])


def main(problems: str, completions: str, ours: str) -> None:
    gold = {row["id"]: row["answer"] for row in lines(problems)}
    mine: dict[str, list[dict[str, Any]]] = {}
    for row in lines(ours):
        mine.setdefault(row["id"], []).append(row)
    counts = {"both right": 0, "both wrong": 0, "covgrpo alone": 0, "lighteval alone": 0}
    seen: dict[str, int] = {}
    for row in lines(completions):
        if "completion" not in row:
            continue  # the first line of recorded completions
        own = mine[row["id"]][seen.setdefault(row["id"], 0)]
        seen[row["id"]] += 1
        theirs, extracted = score(gold[row["id"]], row["completion"])
        right = own["score"] > 0.5, theirs > 0.5
        kind = {(1, 1): "both right", (0, 0): "both wrong", (1, 0): "covgrpo alone", (0, 1): "lighteval alone"}[right]
        counts[kind] += 1
        if right[0] != right[1]:
            found = {"covgrpo": own["answer"][-200:], "lighteval": extracted, "end": row["completion"][-200:]}
            print(json.dumps({"kind": kind, "id": row["id"], "gold": gold[row["id"]], **found}, ensure_ascii=False))
    print(json.dumps(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
