"""Countdown by traces of tries: problems, the verifier, random traces, and where a trace is mistaken."""

import hashlib
import json
import random
import time
from collections import Counter

import pytest
from tries_cases import first_wrong, is_right, judged_tries, mutated

from covgrpo.tasks import is_eval_question, load_task
from covgrpo.tasks.countdown_mistakes import Mistake, find_mistakes, mistaken_characters
from covgrpo.tasks.countdown_tries import MAX_LENGTH, last_try, random_trace, score
from covgrpo.verify import VerifierPool

TASK = "countdown:?style=tries"
GIVEN = {"numbers": [3, 4, 5], "target": 8}
RIGHT = "3+4=7 7*5=35 x;5-3=2 2*4=8!"
ALPHABET = set("0123456789+-*/=: x;!")


# --- problems ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [2, 3, 4, 6])
def test_questions_and_gold_answers(numbers):
    task = load_task(f"{TASK}&numbers={numbers}")
    assert task.verifier == "covgrpo.tasks.countdown_tries:score"
    assert load_task(task.spec) == task
    for problem in task.problems("train", 150, 3):
        given, target = problem.payload["numbers"], problem.payload["target"]
        assert problem.question == f"{' '.join(map(str, given))}={target}" and given == sorted(given)
        assert score(json.loads(json.dumps(problem.payload)), problem.answer) == 1.0
        assert problem.answer.count("=") == numbers - 1 and set(problem.answer + problem.question) <= ALPHABET
        results = [int(step.split("=")[1]) for step in problem.answer.rstrip("!").split(" ")]
        assert all(1 <= result <= 198 for result in results) and results[-1] == target <= 99


def test_results_are_bounded_by_the_parameters():
    problems = load_task(f"{TASK}&largest=6&max_target=10").problems("train", 100, 0)
    results = [int(step.split("=")[1]) for p in problems for step in p.answer.rstrip("!").split(" ")]
    assert max(results) == 20


def test_no_question_is_in_both_splits():
    task = load_task(TASK)
    sides = {split: {p.question for s in range(3) for p in task.problems(split, 300, s)} for split in ("train", "eval")}
    assert not sides["train"] & sides["eval"]
    assert all(is_eval_question(question) == (split == "eval") for split, found in sides.items() for question in found)


@pytest.mark.parametrize(
    ("spec", "digest"),
    [
        ("countdown:", "de4dc00a2032daa5"),
        ("countdown:?numbers=5", "342db90f0aced79b"),
        ("countdown:?style=compact", "b33d82af76014780"),
        ("countdown:?numbers=5&style=compact", "197929594312f5e5"),
    ],
)
def test_the_other_styles_draw_what_the_kept_studies_were_trained_on(spec, digest):
    drawn = [(p.id, p.question, p.answer, p.payload) for p in load_task(spec).problems("train", 200, 11)]
    assert hashlib.sha256(repr(drawn).encode()).hexdigest()[:16] == digest
    assert load_task(spec).verifier == "covgrpo.tasks.countdown:score"


# --- the verifier --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (RIGHT, 1),
        ("5-3=2 2*4=8!", 1),
        (" 5-3=2 4*2=8!\n", 1),
        ("anything at all;5-3=2 2*4=8!", 1),  # earlier tries are not looked at
        ("5-3=2 2*4=8 x;5-3=2 2*4=8!", 1),
        (";;5-3=2 2*4=8!", 1),
        ("5-3=2 2*4=8", 0),
        ("5-3=2 2*4=8 x;", 0),
        ("5-3=2 2*4=8 x;!", 0),
        ("5-3=2 2*4=8! x;", 0),
        ("5-3=2 2*4=8!!", 0),
        ("3+4=7!;5-3=2 2*4=8!", 0),  # it had said that it was done
        ("5-3=2 2*4=8 !", 0),
        ("5-3=2  2*4=8!", 0),
        ("x; 5-3=2 2*4=8!", 0),
        ("5-3=2\n2*4=8!", 0),
        ("5-3=2,2*4=8!", 0),
        ("5 - 3 = 2 2*4=8!", 0),
        ("2*4=8 5-3=2!", 0),
        ("2*4=8!", 0),
        ("3+5=8!", 0),
        ("4+5=9 9-3=6!", 0),
        ("3+4=8!", 0),
        ("3+4=7 7+5=8!", 0),
        ("5-3=2 2*4=8 8*1=8!", 0),
        ("5-3=2 2*4=8 8+0=8!", 0),
        ("5-3=2 5-3=2 2*4=8!", 0),
        ("5-3=02 2*4=8!", 0),
        ("5-3=2 2*4=08!", 0),
        ("5-3=2.0 2*4=8!", 0),
        ("5-3=2 2*4=+8!", 0),
        ("3-5=-2 -2*4=-8!", 0),
        ("5-3=2 2**4=8!", 0),
        ("5-3=2 2\u00d74=8!", 0),
        ("5-3=\u0662 2*4=8!", 0),
        ("\uff15-3=2 2*4=8!", 0),
        ("5-3=2 2*4=8\uff01", 0),
        ("5-3=2 2*4=8;!", 0),
        ("8!", 0),
        ("!", 0),
        (";!", 0),
        ("", 0),
        (" ", 0),
        ("\0", 0),
        ("5-3=2 2*4=8!\0", 0),
        ("\ud800!", 0),
    ],
)
def test_scores(answer, expected):
    assert score(GIVEN, answer) == expected


@pytest.mark.parametrize(
    ("numbers", "target", "answer", "expected"),
    [
        ([5, 5, 7], 7, "5-5=0 0+7=7!", 1),
        ([5, 5, 7], 7, "5-5=0 7-0=7!", 1),
        ([5, 5, 7], 0, "5-5=0 0/7=0!", 1),
        ([5, 5, 7], 7, "5-5=0 7/0=7!", 0),
        ([5, 5, 7], 0, "5-5=0 7/0=0!", 0),
        ([5, 5, 7], 7, "5/5=1 7/1=7!", 1),
        ([5, 7], 1, "7/5=1!", 0),  # exact division alone
        ([5, 5], 25, "5*5=25!", 1),
        ([5], 5, "5!", 0),  # a try has a step
        ([3, 5, 5], 5, "5*5=25 25-5=20!", 0),
        ([6] * 6, 46656, "6*6=36 6*6=36 6*6=36 36*36=1296 1296*36=46656!", 1),
        ([1000] * 6, 10**18, " ".join(f"{10**n}*1000={10 ** (n + 3)}" for n in (3, 6, 9, 12, 15)) + "!", 1),
    ],
)
def test_exact_values(numbers, target, answer, expected):
    assert score({"numbers": numbers, "target": target}, answer) == expected


HOSTILE = {
    "exclamation marks": "!" * 1_000_000,
    "semicolons": ";" * 1_000_000 + RIGHT,
    "spaces": " " * 1_000_000 + RIGHT,
    "long number": "9" * 1_000_000 + "+1=1!",
    "long result": "5-3=" + "2" * 1_000_000 + "!",
    "long steps": "5-3=2 " * 200_000 + "2*4=8!",
    "signs": "+" * 1_000_000 + "!",
    "right at the end": "3+4=7 7*5=35 x;" * 70_000 + "5-3=2 2*4=8!",
    "long number within the limit": "5-3=" + "2" * 900 + "!",
    "signs within the limit": "3+4=7 " * 160 + "!",
    "import": "__import__('os').system('true')!",
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_answers_cost_nothing(answer):
    start = time.perf_counter()
    assert score(GIVEN, answer) == 0.0
    assert time.perf_counter() - start < 0.05


def test_at_most_1000_characters():
    tries = "5-3=2 x;" * 200
    assert score(GIVEN, tries[: MAX_LENGTH - 12] + "5-3=2 2*4=8!") == 0.0  # the cut left no semicolon before it
    assert score(GIVEN, tries[-(MAX_LENGTH - 12) :] + "5-3=2 2*4=8!") == 1.0
    assert score(GIVEN, tries[-(MAX_LENGTH - 11) :] + "5-3=2 2*4=8!") == 0.0


@pytest.mark.parametrize("numbers", [2, 3, 4])
def test_agrees_with_a_search_of_every_try(numbers):
    task, rng = load_task(f"{TASK}&numbers={numbers}&largest=9"), random.Random(numbers)
    outcomes = Counter()
    for problem in task.problems("train", 8, 1):
        given, target = tuple(problem.payload["numbers"]), problem.payload["target"]
        tries = list(judged_tries(given, target))
        for _ in range(150):
            trace = random_trace(task, problem, rng)
            wrong_end = rng.choice(tries).removesuffix(" x;").removesuffix("!") + "!"
            for text in (trace, wrong_end, mutated(trace, rng), mutated(wrong_end, rng)):
                expected = is_right(given, target, text.strip())
                assert score(problem.payload, text) == expected, (given, target, text)
                outcomes[expected] += 1
    assert min(outcomes[True], outcomes[False]) > 300


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (RIGHT, "5-3=2,2*4=8"),
        (" 5-3=2 2*4=8! ", "5-3=2,2*4=8"),
        ("3+4=7 7*5=35!", "3+4=7,7*5=35"),
        ("5-3=2 2*4=8", ""),  # cut off
        ("5-3=2 2*4=8!!", ""),
        ("", ""),
    ],
)
def test_what_a_majority_compares(answer, expected):
    assert last_try(answer) == load_task(TASK).vote(answer) == expected
    assert load_task("countdown:").vote("3 + 4") == "3 + 4"


def test_one_vote_one_score():
    """Answers that a majority vote takes for the same score the same, and no vote scores nothing."""
    rng, scores = random.Random(7), {}
    for _ in range(3000):
        text = mutated("3+4=7 x;5-3=2 2*4=8!", rng)
        scores.setdefault("".join(last_try(text).split()), set()).add(score(GIVEN, text))
    assert scores[""] == {0.0} and {1.0} in scores.values() and len(scores) > 50
    assert all(len(found) == 1 for found in scores.values())


@pytest.mark.slow
def test_in_a_worker_process():
    task = load_task(TASK)
    answers = {RIGHT: 1.0, "5-3=2 2*4=8 x;": 0.0, "9" * 90_000: 0.0, "5-3=2 2*4=8!" * 8000: 0.0, "": 0.0}
    with VerifierPool(task.verifier) as pool:
        verdicts = pool.score([(GIVEN, answer) for answer in answers])
    assert [verdict.score for verdict in verdicts] == list(answers.values())
    assert not any(verdict.failure for verdict in verdicts)


# --- random traces -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("numbers", "limit"), [(3, 96), (4, 160)])
def test_random_traces_are_right_and_fit_and_have_0_to_3_wrong_tries(numbers, limit):
    task, rng = load_task(f"{TASK}&numbers={numbers}"), random.Random(0)
    wrong = Counter()
    for problem in task.problems("train", 800, 0):
        trace = random_trace(task, problem, rng)
        assert score(problem.payload, trace) == 1.0 and len(trace) <= limit
        assert find_mistakes(**problem.payload, text=trace, ended=True) == []
        assert trace.split(";")[-1] == problem.answer
        results = [int(part.split(" ")[0].rstrip("!")) for part in trace.split("=")[1:]]
        assert max(results) <= 198
        wrong[trace.count(" x;")] += 1
    assert sorted(wrong) == [0, 1, 2, 3] and min(wrong.values()) > 150


def test_a_random_trace_depends_on_the_seed_alone():
    task = load_task(TASK)
    problem = task.problems("train", 1, 0)[0]
    drawn = [[random_trace(task, problem, rng) for _ in range(20)] for rng in map(random.Random, (1, 1, 2))]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {random_trace(task, problem, random.Random(s), most_wrong=0) for s in range(5)} == {problem.answer}


# --- mistakes ------------------------------------------------------------------------------------------------------

# text, whether it ended by itself, and (kind, text of the mistake, text from its first wrong character on)
MISTAKES = [
    (RIGHT, True, []),
    ("3+4=7 7*5=35 x;5-3=2 2*4", False, []),
    ("3+4=7 x;5-3=2 2*4=8!", True, []),  # to give up early is no mistake
    ("3+4=8 8+5=13 x;5-3=2 2*4=8!", True, [("result", "3+4=8", "8 8+5")]),  # the step after goes by what was written
    ("3*5=14 x;", False, [("result", "3*5=14", "4 x;")]),
    ("3*5=1 x;", False, [("result", "3*5=1", " x;")]),
    ("3*5=1", False, []),  # cut off
    ("3*5=1", True, [("result", "3*5=1", "")]),
    ("3*5=151 x;", False, [("result", "3*5=151", "1 x;")]),
    ("3-5=2 2*4=8 x;", False, [("result", "3-5=2", "-5=2")]),  # 3 - 4 is no better
    ("5/4=1 3+1=4 x;", False, [("result", "5/4=1", "/4=1")]),
    ("5-3=2 2/4=1 x;", False, [("result", "2/4=1", "/4=1")]),
    ("5-6=1 x;", False, [("number", "5-6=1", "6=1")]),
    ("3+4=7 5+4=9 x;", False, [("number", "5+4=9", "4=9")]),
    ("35+4=39 x;", False, [("number", "35+4=39", "5+4")]),
    ("3+4=7 7*5=35 35+1=36 x;", False, [("number", "35+1=36", "35+1")]),  # one term is left
    ("3++4=7 x;", False, [("form", "3++4=7", "+4=7")]),
    ("3+4=7 7*5 x;", False, [("form", "7*5", " x;")]),
    ("3+4=7x;", False, [("form", "3+4=7x", "x;")]),
    ("3+4=7;", False, [("form", ";", ";")]),
    ("x;3+4=7", False, [("form", "x", "x;")]),
    ("3+4=7 7*5=35!", True, [("judgement", "!", "!")]),
    ("3+4=7 7+5=8!", True, [("result", "7+5=8", "8!"), ("judgement", "!", "!")]),
    ("5-3=2 2*4=8 x;3+4=7 7*5=35 x;", False, [("judgement", " x;", " x;3+4")]),
    ("5-3=2 2*4=8 8+3=11 x;", False, [("judgement", " 8+3=11 x;", " 8+3")]),
    ("5-3=2 2*4=8 ", False, [("judgement", " ", " ")]),
    ("5-3=2 2*4=8!x;", False, [("form", "x;", "x;")]),
    ("5-3=2 2*4=8", False, []),
    ("5-3=2 2*4=8", True, [("form", "", "")]),
    ("", False, []),
    ("", True, [("form", "", "")]),
]


@pytest.mark.parametrize(("text", "ended", "expected"), MISTAKES)
def test_mistakes(text, ended, expected):
    found = find_mistakes([3, 4, 5], 8, text, ended)
    assert [(m.kind, text[m.start : m.end]) for m in found] == [(kind, span) for kind, span, _ in expected]
    for mistake, (_, _, rest) in zip(found, expected, strict=True):
        assert text[mistake.first :].startswith(rest) and (rest or mistake.first == len(text))


@pytest.mark.parametrize("numbers", [2, 3])
def test_the_first_mistake_is_where_no_right_text_goes_on(numbers):
    task, rng = load_task(f"{TASK}&numbers={numbers}&largest=12"), random.Random(numbers)
    places = Counter()
    for problem in task.problems("train", 12, 2):
        given, target = tuple(problem.payload["numbers"]), problem.payload["target"]
        for _ in range(200):
            trace = random_trace(task, problem, rng)
            for text in (trace, mutated(trace, rng)):
                for ended in (False, True):
                    found = find_mistakes(given, target, text, ended)
                    expected = first_wrong(given, target, text, ended)
                    assert (found[0].first if found else None) == expected, (given, target, text, ended)
                    places[expected is None] += 1
                    assert all(0 <= m.start < max(m.end, 1) and m.start <= m.first <= m.end for m in found)
    assert min(places.values()) > 500


def test_a_text_scores_one_where_its_last_try_has_no_mistake_and_it_is_done():
    task, rng = load_task(TASK), random.Random(5)
    scores = Counter()
    for problem in task.problems("train", 40, 4):
        for _ in range(60):
            text = mutated(random_trace(task, problem, rng), rng).strip()
            start = text.rfind(";") + 1
            last = find_mistakes(**problem.payload, text=text[start:], ended=True)
            right = not last and "!" not in text[:start]
            assert score(problem.payload, text) == right, (problem.payload, text)
            scores[right] += 1
    assert min(scores.values()) > 200


def test_characters_of_mistakes():
    text = "3+4=8 x;4+4=8!"
    found = find_mistakes([3, 4, 5], 8, text)
    assert [m.kind for m in found] == ["result", "number", "judgement"]
    marks = mistaken_characters(len(text), found)
    assert [i for i, marked in enumerate(marks) if marked] == [4, 10, 13]
    whole = mistaken_characters(len(text), found, whole=True)
    assert "".join("m" if marked else "." for marked in whole) == "mmmmm...mmmmmm"
    assert mistaken_characters(2, [Mistake("form", 1, 3, 2)]) == [False, False]
    assert mistaken_characters(3, [Mistake("form", 2, 3, 2)]) == [False, False, True]


def test_mistakes_of_hostile_texts_cost_nothing():
    start = time.perf_counter()
    for character in "9;!+ =x3":
        for text in (character * MAX_LENGTH, "3+4=7 " * 150 + character * 50, "9" * 999 + character):
            assert find_mistakes([3, 4, 5], 8, text)
    assert time.perf_counter() - start < 1.0
    with pytest.raises(ValueError, match="1001 characters; at most 1000"):
        find_mistakes([3, 4, 5], 8, "3" * 1001)
