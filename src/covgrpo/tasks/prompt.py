r"""Chat prompts, and the answer formats: how an answer is asked for, written, found and checked.

Extraction reads model output, so it is linear in its length and never recurses, whatever the text.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from covgrpo.errors import UserError
from covgrpo.suggest import did_you_mean_or_known
from covgrpo.tasks.base import Problem
from covgrpo.tasks.math_limits import end_of


@dataclass(frozen=True)
class AnswerFormat:
    """One way to present an answer.

    Attributes:
        name: Its key in :data:`ANSWER_FORMATS`.
        instruction: The default system prompt.
        render: A gold answer as the model should write it, for solved examples.
        extract: The answer text of a completion, stripped; "" if there is none.
        is_well_formed: Whether a completion keeps to the format, right or wrong.
    """

    name: str
    instruction: str
    render: Callable[[str], str]
    extract: Callable[[str], str]
    is_well_formed: Callable[[str], bool]


# \boxed and its brace, then any escaped character (so that \{ is no brace), then braces
_BOX_TOKEN = re.compile(r"(\\boxed\s*\{)|\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str:
    r"""Content of the last ``\boxed{...}`` whose braces balance, stripped; "" if there is none.

    Last means: opened last. One pass with a stack of open braces, so 10,000 of them cost 10,000 steps.
    """
    if "\\boxed" not in text:
        return ""
    open_braces: list[int] = []  # content start of a box; -1 for any other brace
    last_start, last_end = -1, -1
    for token in _BOX_TOKEN.finditer(text):
        if token.group(1):
            open_braces.append(token.end())
        elif token.group() == "{":
            open_braces.append(-1)
        elif token.group() == "}" and open_braces:
            start = open_braces.pop()
            if start > last_start:
                last_start, last_end = start, token.start()
    return text[last_start:last_end].strip() if last_start >= 0 else ""


def answer_tag(text: str) -> str:
    """Content of the last ``<answer>...</answer>`` after the last ``</think>``, stripped; "" if there is none."""
    _, _, tail = text.rpartition("</think>")
    before, closing, _ = tail.rpartition("</answer>")
    _, opening, content = before.rpartition("<answer>")
    return content.strip() if opening and closing else ""


def math_answer(text: str) -> str:
    r"""The last ``\boxed{...}`` after the last ``</think>``; else the last one anywhere; else the end of the text.

    From an end of a text math-verify takes the last expression that is marked as one ($...$, "answer is ...").
    """
    _, closed, tail = text.rpartition("</think>")
    return last_boxed(tail) or (last_boxed(text) if closed else "") or end_of(tail)


_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def _is_think_answer(text: str) -> bool:
    """Each of the four tags exactly once, in order, and only whitespace around and between the two blocks."""
    if any(text.count(tag) != 1 for tag in _TAGS):
        return False
    before, _, rest = text.partition("<think>")
    _, closed, rest = rest.partition("</think>")
    between, opened, rest = rest.partition("<answer>")
    answer, ended, after = rest.partition("</answer>")
    outside = before + between + after
    return bool(closed and opened and ended and answer.strip()) and not outside.strip()


def _is_thought_then_boxed(text: str) -> bool:
    """One ``</think>``, a box after it, ``<think>`` at most at the start: a chat template may have opened it."""
    thought, closed, rest = text.partition("</think>")
    opened = thought.lstrip().removeprefix("<think>")
    return bool(closed and last_boxed(rest)) and not any(tag in part for tag in _TAGS[:2] for part in (opened, rest))


def _closes_its_thought_on_a_line(text: str) -> bool:
    r"""``"\n</think>\n"`` exactly once, counted without overlaps; the tag within a line counts for nothing."""
    return text.count("\n</think>\n") == 1


PLAIN = AnswerFormat(
    name="plain",
    instruction="Give only the final answer, without explanation.",
    render=lambda answer: answer,
    extract=str.strip,
    is_well_formed=lambda completion: bool(completion.strip()),
)

BOXED = AnswerFormat(
    name="boxed",
    instruction="Please reason step by step, and put your final answer within \\boxed{}.",
    render=lambda answer: f"\\boxed{{{answer}}}",
    extract=last_boxed,
    is_well_formed=lambda completion: bool(last_boxed(completion)),
)

MATH = AnswerFormat(
    name="math",
    instruction=BOXED.instruction,
    render=BOXED.render,
    extract=math_answer,
    is_well_formed=BOXED.is_well_formed,
)

THINK = AnswerFormat(
    name="think",
    instruction=(
        "First think about the reasoning process, then give the answer. Write the reasoning process within "
        "<think> </think> and the answer within <answer> </answer> tags, i.e. "
        "<think> reasoning process here </think> <answer> answer here </answer>."
    ),
    render=lambda answer: f"<think>\n</think>\n<answer>{answer}</answer>",
    extract=answer_tag,
    is_well_formed=_is_think_answer,
)

THINK_MATH = AnswerFormat(
    name="think_math",
    instruction=(
        "First think about the reasoning process, enclosed within <think> </think> tags, then give the answer, with "
        "the final answer within \\boxed{}."
    ),
    render=lambda answer: f"<think>\n</think>\n\\boxed{{{answer}}}",
    extract=math_answer,
    is_well_formed=_is_thought_then_boxed,
)

# What the authors of arXiv 2605.11538 reward; the line breaks are not asked for, as in theirs. The wording is ours.
THINK_LINE = AnswerFormat(
    name="think_line",
    instruction=(
        "Work the problem out before you answer it. Write your reasoning between <think> and </think>, then the answer "
        "between <answer> and </answer>, with the final result in \\boxed{}. Use no language but English."
    ),
    render=lambda answer: f"<think>\n\n</think>\n<answer>\\boxed{{{answer}}}</answer>",
    extract=math_answer,
    is_well_formed=_closes_its_thought_on_a_line,
)

_FORMATS = (PLAIN, BOXED, MATH, THINK, THINK_MATH, THINK_LINE)
ANSWER_FORMATS: dict[str, AnswerFormat] = {fmt.name: fmt for fmt in _FORMATS}


def get_answer_format(name: str) -> AnswerFormat:
    """The format of that name.

    Raises:
        UserError: unknown name.
    """
    if name not in ANSWER_FORMATS:
        raise UserError(f"answer_format {name!r} is unknown.{did_you_mean_or_known(name, ANSWER_FORMATS)}")
    return ANSWER_FORMATS[name]


@dataclass(frozen=True)
class PromptFormat:
    """How a problem becomes chat messages.

    Attributes:
        answer_format: A key of :data:`ANSWER_FORMATS`.
        system_prompt: None for the format's instruction, "" for no system message.
        num_examples: Solved examples before the question.

    Raises:
        UserError: unknown ``answer_format`` or negative ``num_examples``.
    """

    answer_format: str = "plain"
    system_prompt: str | None = None
    num_examples: int = 0

    def __post_init__(self) -> None:
        get_answer_format(self.answer_format)
        if self.num_examples < 0:
            raise UserError(f"num_examples must be at least 0, not {self.num_examples}.")

    def messages(self, problem: Problem, examples: Sequence[Problem] = ()) -> list[dict[str, str]]:
        """System message, then a user and an assistant message for each example, then the question.

        Takes the first ``num_examples`` of ``examples`` that have an answer and ask another question.

        Raises:
            UserError: fewer than ``num_examples`` such examples.
        """
        fmt = get_answer_format(self.answer_format)
        system = fmt.instruction if self.system_prompt is None else self.system_prompt
        messages = [{"role": "system", "content": system}] if system else []
        usable = [ex for ex in examples if ex.answer and ex.question != problem.question]
        if len(usable) < self.num_examples:
            raise UserError(f"num_examples is {self.num_examples}, but {len(usable)} can be used.")
        for example in usable[: self.num_examples]:
            messages.append({"role": "user", "content": example.question})
            messages.append({"role": "assistant", "content": fmt.render(example.answer)})
        return [*messages, {"role": "user", "content": problem.question}]
