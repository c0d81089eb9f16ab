"""Tasks: specs, the split, each kind's own errors, and that gold answers score 1."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covgrpo.errors import UserError
from covgrpo.tasks import Problem, Task, is_eval_question, list_tasks, load_task
from covgrpo.tasks import addition as addition_module
from covgrpo.tasks import reasoning_gym as rg_module
from covgrpo.tasks.base import collect_problems
from covgrpo.tasks.entry_json import decode_entry, encode_entry
from covgrpo.tasks.spec import format_spec, parse_spec

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# these two datasets store no solution, so there is no gold answer to feed back
WITHOUT_GOLD = {"boxnet", "rush_hour"}
# its scorer raises on text that is no number; the pool counts that as a failure, with score 0
RAISES_ON_NONSENSE = {"prime_factorization"}


def questions(problems: list[Problem]) -> list[str]:
    return [problem.question for problem in problems]


# --- specs ---------------------------------------------------------------------------------------------------------


def test_spec_values_are_json_or_plain_text():
    parsed = parse_spec('reasoning_gym:basic_arithmetic?min_terms=2&operators=["+"]&style=simple&x=NaN&on=true')
    assert parsed == (
        "reasoning_gym",
        "basic_arithmetic",
        {"min_terms": 2, "operators": ["+"], "style": "simple", "x": "NaN", "on": True},
    )
    assert parse_spec("addition") == parse_spec("addition:") == ("addition", "", {})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)


@given(body=st.text(), params=st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), json_values, max_size=3))
def test_spec_round_trip(body, params):
    assert parse_spec(format_spec("kind", body, params, {})) == ("kind", body, params)


def test_canonical_spec_sorts_and_leaves_out_defaults():
    assert load_task("addition?max=20&min=1").spec == "addition:?max=20"
    assert load_task("addition?max=5&min=2").spec == load_task("addition:", {"min": 2, "max": 5}).spec
    spec = 'reasoning_gym:basic_arithmetic?operators=["+"]&min_terms=2&strict=false'
    canonical = load_task(spec).spec
    assert canonical == 'reasoning_gym:basic_arithmetic?operators=["+"]&strict=false'
    assert load_task(canonical).problems("train", 5, 3) == load_task(spec).problems("train", 5, 3)


def test_params_override_the_spec():
    assert load_task("addition?max=20", {"max": 3}).spec == "addition:?max=3"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("additon", ["'additon'", "Did you mean 'addition'"]),
        ("addition:x", ["'x'"]),
        ("addition?maxx=3", ["'maxx'", "Did you mean 'max'"]),
        ("addition?max=two", ["'max'", "int", "'two'"]),
        ("addition?max=true", ["'max'", "int"]),
        ("addition?min=5&max=4", ["4 < 5"]),
        ("addition?eval_fraction=1", ["eval_fraction", "1"]),
        ("addition?max", ["'max'", "name=value"]),
        ("addition?max=1&max=2", ["'max'", "twice"]),
        ("reasoning_gym:basic_aritmetic", ["'basic_aritmetic'", "'basic_arithmetic'"]),
        ("reasoning_gym:composite", ["'composite'"]),
        ("reasoning_gym:basic_arithmetic?min_term=2", ["'min_term'", "basic_arithmetic", "'min_terms'"]),
        ("reasoning_gym:basic_arithmetic?seed=2", ["'seed'"]),
        ("reasoning_gym:basic_arithmetic?min_terms=0", ["min_terms must be positive"]),
        ("reasoning_gym:basic_arithmetic?min_terms=many", ["basic_arithmetic", "'many'"]),
        ("reasoning_gym:time_intervals?min_date=soon", ["time_intervals", "'soon'"]),
        ("reasoning_gym:arc_agi?board_format_opts=1", ["'board_format_opts'"]),
        ("reasoning_gym:gcd?strict=1", ["'strict'", "bool"]),
        ("no_such.module:task", ["no_such"]),
        ("json.decoder:nothing", ["json.decoder:nothing", "nothing"]),
        ("json.decoder:JSONDecoder?a=1", ["json.decoder:JSONDecoder", "'a'"]),
        ("json.decoder:JSONDecoder", ["JSONDecoder", "problems()"]),
    ],
)
def test_wrong_specs_are_named_in_one_sentence(spec, words):
    with pytest.raises(UserError) as caught:
        load_task(spec)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_own_task_by_import_path(tmp_path, monkeypatch):
    (tmp_path / "own_pkg").mkdir()
    (tmp_path / "own_pkg" / "__init__.py").write_text("")
    (tmp_path / "own_pkg" / "tasks.py").write_text(
        "from covgrpo.tasks import Problem\n"
        "class Echo:\n"
        "    verifier = 'own_pkg.tasks:score'\n"
        "    def __init__(self, word): self.spec = f'own_pkg.tasks:make?word={word}'; self.word = word\n"
        "    def problems(self, split, n, seed): return [Problem('0', f'Say {self.word}', self.word, {})]\n"
        "def make(word): return Echo(word)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    task = load_task("own_pkg.tasks:make?word=hi")
    assert isinstance(task, Task)
    assert task.problems("train", 1, 0)[0].question == "Say hi"
    for name in ("own_pkg", "own_pkg.tasks"):
        sys.modules.pop(name)


# --- the split -----------------------------------------------------------------------------------------------------


def test_membership_is_a_fixed_hash_of_the_question():
    # sha256("b") = 3e23e816...: 0.2427 of the hash space
    assert [is_eval_question("b", fraction) for fraction in (0.24, 0.25)] == [False, True]
    assert [is_eval_question("\ud800", fraction) for fraction in (0.0, 1.0)] == [False, True]  # lone surrogate
    assert 0.17 < sum(is_eval_question(str(i), 0.2) for i in range(5000)) / 5000 < 0.23


@pytest.mark.parametrize("spec", ["addition?max=30", "reasoning_gym:chain_sum?max_terms=3&max_digits=1&min_digits=1"])
def test_train_and_eval_never_overlap_over_seeds(spec):
    task = load_task(spec)
    train = {q for seed in range(5) for q in questions(task.problems("train", 150, seed))}
    evals = {q for seed in range(5) for q in questions(task.problems("eval", 60, seed))}
    assert len(train) > 150 and len(evals) > 60
    assert not train & evals


@pytest.mark.parametrize("spec", ["addition:", "reasoning_gym:chain_sum"])
def test_problems_are_distinct_and_seeded(spec):
    task = load_task(spec)
    first = task.problems("train", 40, 1)
    assert len(set(questions(first))) == len({p.id for p in first}) == len(first) == 40
    assert task.problems("train", 40, 1) == first
    assert questions(task.problems("train", 40, 2)) != questions(first)
    assert questions(task.problems("train", 20, 1)) == questions(first)[:20]


def test_small_spaces_come_whole():
    task = load_task("addition:")
    train, evals = task.problems("train", 1000, 0), task.problems("eval", 1000, 0)
    expected = {f"What is {a} + {b}?" for a in range(1, 10) for b in range(1, 10)}
    assert {*questions(train), *questions(evals)} == expected
    assert len(train) + len(evals) == 81
    # sums and differences of two digits, drawn at random: the generator gives up instead of looping for ever
    sums = load_task("reasoning_gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1")
    assert 100 < len(sums.problems("train", 5000, 0)) < 5000


def test_a_split_may_be_empty_only_with_an_error():
    with pytest.raises(UserError, match="eval split"):
        load_task("addition?min=1&max=1&eval_fraction=0.0001").problems("eval", 1, 0)
    with pytest.raises(UserError, match="at least 1"):
        load_task("addition:").problems("train", 0, 0)
    with pytest.raises(UserError, match="'test'"):
        load_task("addition:").problems("test", 1, 0)


def test_collecting_stops_after_a_streak_without_new_questions():
    drawn = []

    def draws():
        while True:
            drawn.append(0)
            yield Problem("0", "What is 1 + 1?", "2", {})

    assert len(collect_problems(draws(), "train", 5, spec="x", eval_fraction=1e-9, max_streak=100)) == 1
    assert len(drawn) == 101


def test_huge_ranges_are_sampled():
    problems = load_task("addition", {"max": 10**9}).problems("train", 10, 0)
    assert len(problems) == 10


# --- scores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "score"), [("5", 1), (" 5\n", 1), ("5.", 0), ("05", 0), ("", 0), ("4", 0)])
def test_addition_is_strict(answer, score):
    assert addition_module.score({"sum": 5}, answer) == score


def test_every_reasoning_gym_dataset_scores_its_own_answer():
    names = [info.name.removeprefix("reasoning_gym:") for info in list_tasks() if ":" in info.name]
    others = ("addition:", "countdown:", "digits:sort", "digits:reverse", "jsonl:PATH", "hub:ORG/NAME")
    names = [name for name in names if name not in others]
    assert len(names) > 100
    without_gold, raising, failed = set(), set(), []
    for name in names:
        problem = load_task(f"reasoning_gym:{name}").problems("train", 1, 0)[0]
        payload = json.loads(json.dumps(problem.payload))
        if not problem.answer:
            without_gold.add(name)
        elif rg_module.score(payload, problem.answer) != 1.0:
            failed.append(name)
        try:
            assert rg_module.score(payload, "certainly not the answer") == 0.0, name
        except (KeyError, TypeError, ValueError):
            raising.add(name)
    assert without_gold == WITHOUT_GOLD
    assert raising == RAISES_ON_NONSENSE
    assert failed == []


@pytest.mark.parametrize(
    ("name", "gold", "answer", "score"),
    [
        ("game_of_life_halting", "True", "True", 1),
        ("game_of_life_halting", "True", "False", 0),
        ("game_of_life_halting", "False", "True", 0),
        ("coin_flip", "0.3125", "0.3125", 1),
        ("coin_flip", "0.3125", "5/16", 1),
        ("coin_flip", "0.3125", "0", 0),
        ("coin_flip", "0.3125", "0.3", 0),
        ("coin_flip", "0.3125", "1/0", 0),
        ("coin_flip", "0.3125", "half", 0),
    ],
)
def test_scorers_that_could_be_cheated_are_replaced(name, gold, answer, score):
    payload = {"task": name, "params": {}, "strict": True, "entry": {"question": "", "answer": gold, "metadata": {}}}
    assert rg_module.score(payload, answer) == score


def test_listed_defaults_can_be_given_back():
    for info in list_tasks():
        if info.name not in ("jsonl:PATH", "hub:ORG/NAME"):
            task = load_task(info.name, json.loads(json.dumps(info.parameters)))
            assert task.spec == info.name, "defaults left out of the canonical spec"


def test_strict_turns_partial_credit_off():
    longer = "The answer is 12, I think."
    for strict, expected in ((True, 0.0), (False, 2 / len(longer))):
        payload = {"task": "gcd", "params": {}, "strict": strict}
        payload["entry"] = {"question": "", "answer": "12", "metadata": {}}
        assert rg_module.score(payload, longer) == pytest.approx(expected)
        assert rg_module.score(payload, "12") == 1.0


def test_parameters_reach_reasoning_gym():
    task = load_task('reasoning_gym:basic_arithmetic?operators=["+"]&max_terms=2&allow_parentheses=false')
    asked = questions(task.problems("train", 30, 0))
    assert all(" + " in q and not set("-*/(") & set(q.partition("Calculate")[2]) for q in asked), asked[0]


entries = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(st.integers() | st.tuples(st.integers(), st.text(max_size=2)), max_size=3)
        | st.dictionaries(st.text(max_size=2) | st.integers() | st.just("!tuple"), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(entries)
def test_entries_survive_json_with_their_types(entry):
    decoded = decode_entry(json.loads(json.dumps(encode_entry(entry))))
    assert decoded == entry and repr(type(decoded)) == repr(type(entry))


def test_numpy_becomes_python_and_unknown_types_are_refused():
    np = pytest.importorskip("numpy")
    assert encode_entry({"a": np.int64(3), "b": np.arange(2), "c": np.str_("x")}) == {"a": 3, "b": [0, 1], "c": "x"}
    with pytest.raises(TypeError, match="object"):
        encode_entry([object()])
