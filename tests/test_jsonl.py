"""Tasks of JSON lines: fields, errors by file and line, the split, and mathematics scores."""

import json
from pathlib import Path

import pytest

from covgrpo.errors import UserError
from covgrpo.tasks import Problem, load_task
from covgrpo.tasks import jsonl as jsonl_module

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def questions(problems: list[Problem]) -> list[str]:
    return [problem.question for problem in problems]


def write(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "some problems?.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_jsonl_reads_numbers_blank_lines_and_default_ids(tmp_path):
    path = write(tmp_path, '\ufeff{"problem": "1+1", "answer": 2}', "", '{"problem": "é", "answer": 0.5, "id": 7}', "")
    problems = jsonl_module.read_problems(path)
    assert [(p.id, p.question, p.answer) for p in problems] == [
        ("some problems?/1", "1+1", "2"),
        ("7", "é", "0.5"),
    ]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], ["holds no problem"]),
        (["", "  "], ["holds no problem"]),
        (['{"problem": "a", "answer": "b"}', "{"], ["line 2", "JSON"]),
        (["[" * 100_000], ["line 1", "JSON"]),
        (["[1]"], ["line 1", "list"]),
        (['{"problem": "a"}'], ["line 1", "'answer'", "missing"]),
        (['{"problem": " ", "answer": "b"}'], ["line 1", "'problem'", "empty"]),
        (['{"problem": "a", "answer": true}'], ["line 1", "'answer'", "true"]),
        (['{"problem": "a", "answer": ["b"]}'], ["line 1", "'answer'"]),
        (
            ['{"problem": "a", "answer": "b", "id": 1}', '{"problem": "c", "answer": "d", "id": "1"}'],
            ["line 2", "'id'", "line 1"],
        ),
    ],
)
def test_jsonl_errors_name_file_line_and_field(tmp_path, lines, words):
    path = write(tmp_path, *lines)
    with pytest.raises(UserError) as caught:
        jsonl_module.read_problems(path)
    for word in [path, *words]:
        assert word in str(caught.value)


def test_jsonl_fields_by_name(tmp_path):
    path = write(tmp_path, '{"q": "1+1?", "gold": 2, "answer": "no", "id": "a"}')
    task = load_task(f"{_spec(path)}?question=q&answer=gold&split=all")
    assert task.problems("train", 1, 0) == [Problem("a", "1+1?", "2", {"gold": "2"})]
    assert task.spec.endswith(".jsonl?answer=gold&question=q&split=all")
    assert load_task(task.spec).spec == task.spec
    with pytest.raises(UserError, match="line 1: field 'problem' is missing; the line has q, gold, answer, id"):
        load_task(_spec(path))


def test_jsonl_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(UserError, match="absent"):
        load_task(f"jsonl:{tmp_path}/absent.jsonl")
    with pytest.raises(UserError, match="path"):
        load_task("jsonl:")
    bad = tmp_path / "latin.jsonl"
    bad.write_bytes(b'{"problem": "a", "answer": "\xe9"}')
    with pytest.raises(UserError, match="line 1"):
        load_task(f"jsonl:{bad}")


def test_jsonl_split(tmp_path):
    rows = [json.dumps({"problem": f"Problem {i % 50}", "answer": str(i)}) for i in range(60)]
    path = write(tmp_path, *rows)
    hashed, whole = load_task(_spec(path)), load_task(_spec(path), {"split": "all"})
    train, evals = (questions(hashed.problems(split, 100, 0)) for split in ("train", "eval"))
    assert not set(train) & set(evals)
    assert len(train) + len(evals) == 50  # of equal questions one stays
    assert sorted(questions(whole.problems("train", 100, 0))) == sorted(train + evals)
    assert sorted(questions(whole.problems("eval", 100, 1))) == sorted(train + evals)
    assert load_task(whole.spec).spec == whole.spec
    with pytest.raises(UserError, match="'both'"):
        load_task(_spec(path), {"split": "both"})


def _spec(path: str) -> str:
    return "jsonl:" + path.replace("?", "%3F")


@pytest.mark.parametrize(
    ("gold", "answer", "score"),
    [
        ("42", "42", 1),
        ("42", "$42$", 1),
        ("42", "42.", 1),
        ("42", "42.0", 1),
        ("42", "The answer is 42.", 1),
        ("42", "\\boxed{42}", 1),
        ("42", "41", 0),
        ("42", "-42", 0),
        ("42", "41 or 42", 0),
        ("42", "41, 42", 0),
        ("42", "{41, 42}", 0),
        ("42", "$41$, so 42 - 1", 0),
        ("1,000", "1000", 1),
        ("42", "", 0),
        ("42", "\\boxed{}", 0),
        ("\\frac{1}{2}", "0.5", 1),
        ("\\frac{1}{2}", "1/2", 1),
        ("\\frac{1}{2}", "\\dfrac12", 1),
        ("\\frac{1}{2}", "\\frac{1}{3}", 0),
        ("x^2+2x+1", "(x+1)^2", 1),
        ("\\text{Evelyn}", "\\text{Evelyn}", 1),
        ("\\text{Evelyn}", "\\text{Angela}", 0),
        ("(-\\infty, 3]", "(-\\infty,3]", 1),
        ("(-\\infty, 3]", "(-\\infty,3)", 0),
        ("not } parseable {", "not } parseable {", 1),
    ],
)
def test_math_scores(gold, answer, score):
    assert jsonl_module.score({"gold": gold}, answer) == score


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aime24", "amc23", "gsm8k_train_2000", "math500"])
def test_gold_answers_of_benchmarks_score_one(name):
    path = SHARED_DATA / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"benchmark file {name}.jsonl is not on this machine")
    problems = jsonl_module.read_problems(path)[:200]
    # the box defeats the string comparison, so that the mathematics is compared
    assert [p.id for p in problems if jsonl_module.score(p.payload, f"\\boxed{{{p.answer}}}") != 1.0] == []
