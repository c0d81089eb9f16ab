"""The paper's five benchmarks as lighteval tasks; needs lighteval 0.13 and an environment of its own.

lighteval vllm "model_name=runs/1.5b/model,dtype=bfloat16,max_model_length=32768,\
generation_parameters={max_new_tokens:32768,temperature:0.6,top_p:0.95}" "math500" \
    --custom-tasks recipes/lighteval_tasks.py

What differs from `covgrpo eval --benchmark`: docs/evaluation.md.
"""

from typing import Any

import numpy as np
from lighteval.metrics.dynamic_metrics import MultilingualExtractiveMatchMetric
from lighteval.metrics.utils.extractive_match_utils import ExprExtractionConfig, LatexExtractionConfig
from lighteval.metrics.utils.metric_utils import SampleLevelMetric
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc, SamplingMethod

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{{}}.\n\n{question}"


def _metric(gold: Any) -> SampleLevelMetric:
    return SampleLevelMetric(
        metric_name="extractive_match",
        sample_level_fn=MultilingualExtractiveMatchMetric(
            fallback_mode="first_match",
            precision=5,
            gold_extraction_target=(gold,),
            pred_extraction_target=(ExprExtractionConfig(), LatexExtractionConfig(boxed_match_priority=0)),
            aggregation_function=max,
        ),
        category=SamplingMethod.GENERATIVE,
        corpus_level_fn=np.mean,
        higher_is_better=True,
    )


NUMBER, LATEX = _metric(ExprExtractionConfig()), _metric(LatexExtractionConfig())

# name -> (data set, split, column of the question, column of the answer, how the gold answer is read)
BENCHMARKS = {
    "aime24": ("HuggingFaceH4/aime_2024", "train", "problem", "answer", NUMBER),
    "math500": ("HuggingFaceH4/MATH-500", "test", "problem", "solution", LATEX),
    "amc23": ("knoveleng/AMC-23", "train", "problem", "answer", NUMBER),
    "minerva": ("knoveleng/Minerva-Math", "train", "problem", "solution", LATEX),
    "olympiadbench": ("knoveleng/OlympiadBench", "train", "question", "answer", LATEX),
}


def _task(name: str) -> LightevalTaskConfig:
    dataset, split, question, answer, metric = BENCHMARKS[name]

    def prompt(line: dict[str, Any], task_name: str | None = None) -> Doc:
        gold = line[answer][0] if isinstance(line[answer], list) else str(line[answer])
        return Doc(task_name=task_name, query=INSTRUCTION.format(question=line[question]), choices=[gold], gold_index=0)

    return LightevalTaskConfig(
        name=name,
        prompt_function=prompt,
        hf_repo=dataset,
        hf_subset="default",
        hf_avail_splits=[split],
        evaluation_splits=[split],
        few_shots_split=None,
        few_shots_select=None,
        generation_size=32_768,
        metrics=[metric],
        version=1,
    )


TASKS_TABLE = [_task(name) for name in BENCHMARKS]
