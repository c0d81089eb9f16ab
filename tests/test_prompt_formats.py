"""Answer formats on ordinary and hostile text, and the chat messages."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covgrpo.errors import UserError
from covgrpo.tasks import ANSWER_FORMATS, Problem, PromptFormat, get_answer_format

BOXED, THINK, PLAIN = ANSWER_FORMATS["boxed"], ANSWER_FORMATS["think"], ANSWER_FORMATS["plain"]
THINK_LINE = ANSWER_FORMATS["think_line"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", ""),
        ("no box", ""),
        (r"\boxed{42}", "42"),
        (r"first \boxed{1}, then \boxed{ 2 }.", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{1 \boxed{2}", "2"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ 1 }", r"\left\{ 1"),
        (r"} } \boxed{5}", "5"),
        (r"{ { \boxed{5}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed", ""),
        ("\\boxed{a\nb}", "a\nb"),
    ],
)
def test_boxed(text, answer):
    assert BOXED.extract(text) == answer
    assert BOXED.is_well_formed(text) == bool(answer)


@pytest.mark.parametrize(
    ("text", "answer", "well_formed"),
    [
        ("<think>t</think><answer>4</answer>", "4", True),
        (" <think>\nt\n</think>\n<answer>\n4\n</answer>\n", "4", True),
        ("<think>t</think><answer> </answer>", "", False),
        ("t</think><answer>4</answer>", "4", False),
        ("<answer>4</answer>", "4", False),
        ("<think><answer>3</answer></think>", "", False),
        ("<think>t</think>so <answer>4</answer>", "4", False),
        ("<think>t</think><answer>4</answer> bye", "4", False),
        ("<think>t</think><answer>3</answer><answer>4</answer>", "4", False),
        ("<answer>4</answer><think>t</think>", "", False),
        ("<think>t</think><answer>4", "", False),
        ("</answer><answer>", "", False),
        ("", "", False),
    ],
)
def test_think(text, answer, well_formed):
    assert THINK.extract(text) == answer
    assert THINK.is_well_formed(text) is well_formed


@pytest.mark.parametrize(
    ("text", "answer", "well_formed"),
    [
        # A chat template may have opened the thought; what is rewarded is one closing tag on a line of its own.
        ("t\n</think>\n<answer>\\boxed{4}</answer>", "4", True),
        ("<think>\nt\n</think>\n\\boxed{4}", "4", True),
        ("\n</think>\n", "", True),
        ("t\n</think>\n\n</think>\n\\boxed{4}", "4", False),
        # The line break between two tags belongs to the first of them.
        ("t\n</think>\n</think>\n\\boxed{4}", "4", True),
        ("t</think>\n\\boxed{4}", "4", False),
        ("t\n</think> \\boxed{4}", "4", False),
        ("t\n</think>", "", False),
        ("</think>\n\\boxed{4}", "4", False),
        ("t\r\n</think>\r\n\\boxed{4}", "4", False),
        ("in a word, </think>, then\n</think>\n\\boxed{4}", "4", True),
        ("\\boxed{4}, but the thought goes on", "4", False),
        ("", "", False),
    ],
)
def test_think_line(text, answer, well_formed):
    assert THINK_LINE.extract(text) == answer
    assert THINK_LINE.is_well_formed(text) is well_formed


def test_plain():
    assert PLAIN.extract(" 4\n") == "4"
    assert PLAIN.is_well_formed("4") and not PLAIN.is_well_formed(" \n")


@pytest.mark.parametrize("fmt", ANSWER_FORMATS.values(), ids=ANSWER_FORMATS)
@given(answer=st.text(alphabet="ab 12\\frac{}", min_size=1).filter(lambda t: t.strip()))
def test_rendered_answers_are_well_formed_and_found_again(fmt, answer):
    if "boxed" in fmt.instruction and (_unbalanced(answer) or "\\" in answer):
        return
    assert fmt.is_well_formed(fmt.render(answer))
    assert fmt.extract(fmt.render(answer)) == answer.strip()


def _unbalanced(text: str) -> bool:
    depth = 0
    for char in text:
        depth += (char == "{") - (char == "}")
        if depth < 0:
            return True
    return depth != 0


MEGA = 2_000_000
HOSTILE = {
    "nested braces": "\\boxed{" + "{" * 10_000 + "1" + "}" * 10_000 + "}",
    "open boxes": "\\boxed{" * (MEGA // 7),
    "nested boxes": "\\boxed{" * 100_000 + "}" * 100_000,
    "box then spaces": ("\\boxed" + " " * 1000) * (MEGA // 1006),
    "closing braces": "}" * MEGA,
    "backslashes": "\\" * MEGA,
    "think tags": "<think>" * (MEGA // 7),
    "answer tags": "<answer>" * (MEGA // 8),
    "closing tags": "</answer>" * (MEGA // 9) + "</think>" * (MEGA // 8),
    "angle brackets": "<" * MEGA,
    "spaces": " " * MEGA,
    "surrogates": "\ud800" * MEGA,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_costs_linear_time(text):
    start = time.perf_counter()
    for fmt in ANSWER_FORMATS.values():
        fmt.extract(text)
        fmt.is_well_formed(text)
    assert time.perf_counter() - start < 5.0  # quadratic time would be hours
    if text is HOSTILE["nested braces"]:
        assert BOXED.extract(text) == text[7:-1]


# --- messages ------------------------------------------------------------------------------------------------------

SUMS = [Problem(str(i), f"What is {i} + 1?", str(i + 1), {}) for i in range(4)]


def test_messages_hold_system_examples_and_question():
    assert PromptFormat("boxed", "Solve.", 1).messages(SUMS[0], SUMS[1:]) == [
        {"role": "system", "content": "Solve."},
        {"role": "user", "content": "What is 1 + 1?"},
        {"role": "assistant", "content": "\\boxed{2}"},
        {"role": "user", "content": "What is 0 + 1?"},
    ]


def test_system_prompt_defaults_to_the_instruction_and_can_be_off():
    assert PromptFormat("think").messages(SUMS[0])[0] == {"role": "system", "content": THINK.instruction}
    assert [m["role"] for m in PromptFormat(system_prompt="").messages(SUMS[0])] == ["user"]


def test_examples_never_show_the_question_itself_or_an_empty_answer():
    unsolved = Problem("u", "Unsolved?", "", {})
    messages = PromptFormat(num_examples=2).messages(SUMS[0], [SUMS[0], unsolved, *SUMS[1:]])
    assert [m["content"] for m in messages if m["role"] == "assistant"] == ["2", "3"]
    with pytest.raises(UserError, match="num_examples is 2"):
        PromptFormat(num_examples=2).messages(SUMS[0], [SUMS[0], unsolved, SUMS[1]])


def test_wrong_formats_are_named():
    with pytest.raises(UserError, match="Did you mean 'boxed'"):
        get_answer_format("box")
    with pytest.raises(UserError, match="answer_format"):
        PromptFormat("xml")
    with pytest.raises(UserError, match="num_examples"):
        PromptFormat(num_examples=-1)
