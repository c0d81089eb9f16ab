"""The countdown task: its problems, and a verifier that computes what a model wrote."""

import json
import random
import time
from collections.abc import Iterator
from fractions import Fraction

import pytest

from covgrpo.cli import main
from covgrpo.errors import UserError
from covgrpo.tasks import Problem, load_task
from covgrpo.tasks.countdown import score

SPECS = [
    "countdown:",
    "countdown:?style=compact",
    "countdown:?numbers=2&largest=60",
    "countdown:?numbers=4&largest=10",
    "countdown:?largest=1000&max_target=1000&numbers=6",
]
GIVEN = {"numbers": [3, 5, 7], "target": 22}


def questions(problems: list[Problem]) -> list[str]:
    return [problem.question for problem in problems]


# --- problems ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
def test_gold_answers_score_one_and_problems_are_in_range(spec):
    task = load_task(spec)
    problems = [*task.problems("train", 500, 3), *task.problems("eval", 100, 3)]
    assert len(problems) == 600
    for problem in problems:
        payload = json.loads(json.dumps(problem.payload))
        assert score(payload, problem.answer) == 1.0, problem
        numbers, target = payload["numbers"], payload["target"]
        assert len(numbers) == task.numbers and numbers == sorted(numbers)
        assert numbers[0] >= 1 and numbers[-1] <= task.largest and target in range(1, task.max_target + 1)
        assert " " not in problem.answer


def test_questions_of_both_styles():
    words, compact = (load_task(f"countdown:?style={style}").problems("train", 50, 0) for style in ("words", "compact"))
    numbers, target = words[0].payload["numbers"], words[0].payload["target"]
    a, b, c = numbers
    asked = f"Use each of {a}, {b} and {c} once, with + - * / and parentheses, to make {target}."
    assert words[0].question == asked
    assert all(p.question == f"{' '.join(map(str, p.payload['numbers']))} = {p.payload['target']}" for p in compact)


def test_the_same_numbers_and_target_are_one_question_and_no_split_leaks():
    task = load_task("countdown:?largest=12")
    sides = {split: [p for seed in range(4) for p in task.problems(split, 300, seed)] for split in ("train", "eval")}
    for problems in sides.values():
        keys = {(*p.payload["numbers"], p.payload["target"]) for p in problems}
        assert len(keys) == len({p.id for p in problems}) == len(set(questions(problems))) > 300
    assert not set(questions(sides["train"])) & set(questions(sides["eval"]))


def test_a_small_space_is_found_whole_and_the_default_one_is_large():
    task = load_task("countdown:?largest=6&style=compact")
    found = {*questions(task.problems("train", 5000, 0)), *questions(task.problems("eval", 5000, 0))}
    expected = {
        f"{a} {b} {c} = {target}"
        for a in range(1, 7)
        for b in range(a, 7)
        for c in range(b, 7)
        for target in positive_results([a, b, c])
        if target <= 99
    }
    assert found == expected
    assert len(load_task("countdown:").problems("train", 6000, 0)) == 6000


def positive_results(numbers: list[int]) -> set[int]:
    """What can be made if every intermediate result is a positive integer; by splitting in two, not by joining."""
    if len(numbers) == 1:
        return set(numbers)
    results = set()
    for mask in range(1, 2 ** len(numbers) - 1):
        left = positive_results([n for i, n in enumerate(numbers) if mask >> i & 1])
        right = positive_results([n for i, n in enumerate(numbers) if not mask >> i & 1])
        for a in left:
            for b in right:
                results |= {a + b, a * b} | ({a - b} if a > b else set()) | ({a // b} if a % b == 0 else set())
    return results


def test_seeds():
    task = load_task("countdown:")
    first = task.problems("train", 60, 1)
    assert task.problems("train", 60, 1) == first
    assert task.problems("train", 30, 1) == first[:30]
    assert questions(task.problems("train", 60, 2)) != questions(first)


def test_canonical_spec():
    task = load_task("countdown?style=compact&numbers=3&largest=9")
    assert task.spec == "countdown:?largest=9&style=compact"
    assert load_task(task.spec) == task


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("countdon", ["'countdon'", "Did you mean 'countdown'"]),
        ("countdown:x", ["'x'"]),
        ("countdown?number=3", ["'number'", "Did you mean 'numbers'"]),
        ("countdown?numbers=1", ["numbers", "between 2 and 6", "not 1"]),
        ("countdown?numbers=7", ["numbers", "not 7"]),
        ("countdown?numbers=3.5", ["'numbers'", "int", "3.5"]),
        ("countdown?numbers=true", ["'numbers'", "int"]),
        ("countdown?largest=0", ["largest", "not 0"]),
        ("countdown?largest=1001", ["largest", "1001"]),
        ("countdown?max_target=0", ["max_target", "not 0"]),
        ("countdown?style=long", ["style", "words or compact", "'long'"]),
        ("countdown?style=3", ["'style'", "str", "3"]),
        ("countdown?eval_fraction=0", ["eval_fraction", "0"]),
    ],
)
def test_wrong_parameters_are_named_in_one_sentence(spec, words):
    with pytest.raises(UserError) as caught:
        load_task(spec)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_line_lists_it(capsys):
    assert main(["tasks", "countdown:"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("countdown: ")
    assert "    numbers = 3" in lines and "    style = 'words'" in lines


# --- the verifier --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("(5*3)+7", 1),
        (" 5*3+7\n", 1),
        ("7 + 3 * 5", 1),
        ("((7))+((5)*(3))", 1),
        ("(" * 97 + "3*5+7" + ")" * 97, 1),
        ("7-(3-5)*5", 0),  # 5 twice
        ("5*3+7 = 22", 0),
        ("5*3+7=22", 0),
        ("22=5*3+7", 0),
        ("5*3+8", 0),
        ("22", 0),
        ("5*3", 0),
        ("5*3+7+0", 0),
        ("5*3+7*1", 0),
        ("3*5+7,", 0),
        ("(3*5+7,)", 0),
        ("3*5\n+7", 0),
        ("3*5+7#", 0),
        ("3*5+7;", 0),
        ("+3*5+7", 0),
        ("-3*-5+7", 0),
        ("03*5+7", 0),
        ("3.0*5+7", 0),
        ("3*5+7.", 0),
        ("3*5+0x7", 0),
        ("3*5+7j", 0),
        ("3*5+7_", 0),
        ("3*5+\u0667", 0),
        ("\uff13*5+7", 0),
        ("3\u00d75+7", 0),
        ("3(5)+7", 0),
        ("3 5 7", 0),
        ("357", 0),
        ("3**5+7", 0),
        ("7+5//3", 0),
        ("3/(5-5)+7", 0),
        ("()", 0),
        ("(3*5+7", 0),
        ("3*5+7)", 0),
        ("", 0),
        (" ", 0),
        ("\0", 0),
        ("3*5+7\0", 0),
        ("\ud800", 0),
    ],
)
def test_scores(answer, expected):
    assert score(GIVEN, answer) == expected


@pytest.mark.parametrize(
    ("numbers", "target", "answer", "expected"),
    [
        ([3, 3, 8, 8], 24, "8/(3-8/3)", 1),  # fractions on the way
        ([2, 3, 9], 8, "2-3+9", 1),  # a negative number on the way
        ([1, 5, 5], 1, "1/(5-5)", 0),
        ([1, 5, 5], 1, "1/(5/5-1)", 0),
        ([2, 3], 1, "3/2", 0),  # 1.5 is not 1
        ([1, 3], 3, "3/1", 1),
        ([7, 7], 49, "7*7", 1),
        ([7, 7], 14, "7+7+7", 0),
        ([10, 12], 120, "12_0", 0),
        ([10, 12], 120, "1_0*12", 0),
        ([2, 3], 8, "2**3", 0),
        ([2, 7], 3, "7//2", 0),
        ([999, 1000], 999000, "999*1000", 1),
    ],
)
def test_exact_values(numbers, target, answer, expected):
    assert score({"numbers": numbers, "target": target}, answer) == expected


HOSTILE = {
    "power": "9**9**9",
    "tower": "9" + "**9" * 60,
    "product": "*".join(["9" * 60] * 3),
    "long number": "9" * 10_000_000,
    "long sum": "1+" * 1_000_000 + "1",
    "long padding": "(" * 1_000_000 + "3*5+7" + ")" * 1_000_000,
    "deep": "(" * 99 + "3" + ")" * 99,
    "deep minus": "-" * 190 + "3",
    "import": "__import__('os').system('true')",
    "lambda": "(lambda: 3*5+7)()",
    "comprehension": "[3*5+7 for _ in range(10**9)]",
    "string": "'3*5+7'",
    "format": "f'{3*5+7}'",
    "walrus": "(x:=3*5+7)",
    "superscript": "3*5+7\u00b2",
    "spaces": "3" + " " * 1_000_000 + "*5+7",
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_answers_cost_nothing(answer):
    start = time.perf_counter()
    assert score(GIVEN, answer) == 0.0
    assert time.perf_counter() - start < 0.1


def test_at_most_200_characters():
    assert score(GIVEN, "3*5" + " " * 195 + "+7") == 1.0
    assert score(GIVEN, "3*5" + " " * 196 + "+7") == 0.0


def expressions(numbers: list[int]) -> Iterator[tuple[Fraction | None, str]]:
    """Every full expression of the numbers in each order, with its value; None where it divides by zero."""
    if len(numbers) == 1:
        yield Fraction(numbers[0]), str(numbers[0])
        return
    for mask in range(1, 2 ** len(numbers) - 1):
        rights = list(expressions([n for i, n in enumerate(numbers) if not mask >> i & 1]))
        for a, left in expressions([n for i, n in enumerate(numbers) if mask >> i & 1]):
            for b, right in rights:
                undefined = a is None or b is None
                yield None if undefined else a + b, f"({left}+{right})"
                yield None if undefined else a - b, f"({left}-{right})"
                yield None if undefined else a * b, f"({left}*{right})"
                yield None if undefined or b == 0 else a / b, f"({left}/{right})"


def test_agrees_with_a_solver_that_tries_everything():
    rng = random.Random(0)
    for _ in range(25):
        numbers = sorted(rng.randint(1, 9) for _ in range(rng.choice([2, 3, 3, 4])))
        everything = list(expressions(numbers))
        found = rng.sample(everything, min(len(everything), 300))
        for value, text in found:
            target = rng.choice([value for value, _ in found if value is not None])
            assert score({"numbers": numbers, "target": int(target)}, text) == (value == int(target)), text
            if value is not None and value.denominator == 1:
                assert score({"numbers": numbers, "target": int(value)}, text) == 1.0
                more = [*numbers[1:], numbers[0] + 1]
                assert score({"numbers": more, "target": int(value)}, text) == 0.0


@pytest.mark.parametrize("numbers", [2, 3])
def test_every_problem_is_one_that_the_solver_solves(numbers):
    for problem in load_task(f"countdown:?numbers={numbers}&largest=9").problems("train", 40, 0):
        given, target = problem.payload["numbers"], problem.payload["target"]
        assert target in {value for value, _ in expressions(given)}
