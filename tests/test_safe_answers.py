"""No answer of a model is run as Python, and right answers keep their scores."""

import ast
import builtins
import json
from pathlib import Path

import pytest

from covgrpo.tasks import jsonl as jsonl_module
from covgrpo.tasks import load_task
from covgrpo.tasks import reasoning_gym as rg_module
from covgrpo.tasks.safe_answers import is_arithmetic, is_elementary, is_literal, is_polynomial, is_queens_board

# {} is a file that the answer would create
HOSTILE = [
    "__import__('os').system('touch {}')",
    "open('{}', 'w')",
    "[open('{}', 'w')]",
    "[[open('{}', 'w') for _ in [1]]]",
    "[*open('{}', 'w').name]",
    "{{1: open('{}', 'w')}}",
    "f\"{{open('{}', 'w')}}\"",
    "(lambda: open('{}', 'w'))()",
    "1 + int(open('{}', 'w').fileno())",
    "x**open('{}', 'w').fileno() + C",
    "exp(open('{}', 'w').fileno())",
    "S(\"open('{}', 'w')\")",
    "[].__class__.__base__.__subclasses__() and open('{}', 'w')",
    "().__class__.__bases__[0].__subclasses__() and open('{}', 'w')",
    "exec(\"open('{}', 'w')\")",
    "[exec(\"open('{}', 'w')\")]",
    "  [\nopen('{}', 'w')\n]  ",
]


def problem_of(name: str):
    problem = load_task(f"reasoning_gym:{name}").problems("train", 1, 0)[0]
    return problem, json.loads(json.dumps(problem.payload))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", sorted(rg_module.GUARDS))
def test_hostile_answers_are_not_run(name, strict, tmp_path):
    _, payload = problem_of(name)
    payload["strict"] = strict
    for hostile in HOSTILE:
        answer = hostile.format(tmp_path / "MARKER")
        assert rg_module.score(payload, answer) == 0.0, answer
        assert list(tmp_path.iterdir()) == [], answer


@pytest.mark.parametrize("name", ["countdown", "n_queens"])
def test_the_hostile_answers_would_run_upstream(name, tmp_path, monkeypatch):
    monkeypatch.delitem(rg_module.GUARDS, name)
    _, payload = problem_of(name)
    rg_module.score(payload, HOSTILE[1].format(tmp_path / "MARKER"))
    assert [path.name for path in tmp_path.iterdir()] == ["MARKER"]


@pytest.mark.parametrize("name", sorted(rg_module.GUARDS))
def test_gold_answers_of_guarded_datasets_score_one(name):
    for problem in load_task(f"reasoning_gym:{name}").problems("train", 10, 1):
        for answer in (problem.answer, f" {problem.answer}\n"):
            if name != "n_queens" or answer == problem.answer:  # its scorer wants the exact text
                assert rg_module.score(problem.payload, answer) == 1.0, answer


@pytest.mark.parametrize("name", ["countdown", "puzzle24", "polynomial_multiplication", "simple_integration"])
def test_gold_expressions_reach_the_scorer(name):
    for problem in load_task(f"reasoning_gym:{name}").problems("train", 10, 1):
        assert rg_module.GUARDS[name](problem.answer), problem.answer


def test_gold_integrals_reach_the_scorer():
    problems = load_task("reasoning_gym:intermediate_integration").problems("train", 60, 1)
    refused = [p.answer for p in problems if not is_elementary(p.answer)]
    # the rest sympy did not solve: their gold answer is the question again, right only as exact text
    assert [answer for answer in refused if "Integral(" not in answer] == []
    assert len(refused) < len(problems) / 4


@pytest.mark.parametrize("name", ["simple_integration", "intermediate_integration"])
def test_the_question_is_no_answer(name):
    metadata = {"variable": "x", "integrand": "2*x"}
    payload = {"task": name, "params": {}, "strict": True}
    payload["entry"] = {"question": "", "answer": "x**2 + C", "metadata": metadata}
    assert rg_module.score(payload, "Integral(2*x, x) + C") == 0.0


@pytest.mark.parametrize(
    ("name", "metadata", "gold", "answers"),
    [
        ("countdown", {"numbers": [2, 3, 4], "target": 14}, "2 + 3*4", ["3*4+2", "(4 * 3\n + 2)", "-(-2 - 4*3)"]),
        ("puzzle24", {}, "1*2*3*4", ["(1 + 3)*(2 + 4)", "4*3*2/1", "2**3*(4 - 1)"]),
        (
            "polynomial_multiplication",
            {},
            "x**2 + 2*x*y + y**2",
            ["y**2+2*y*x+x**2", "x**2 + y*x*2+y**2"],
        ),
        (
            "simple_integration",
            {"variable": "X", "integrand": "2*X"},
            "X**2 + C",
            ["X**2", "C + X*X", "X**2 + k - 1/2"],
        ),
        (
            "intermediate_integration",
            {"variable": "x", "integrand": "2*exp(2*x)"},
            "exp(2*x) + C",
            ["E**(2*x) + C", "exp(x)**2 + pi", "exp(2*x) + log(2) + sqrt(3)*C"],
        ),
    ],
)
def test_other_right_forms_keep_their_score(name, metadata, gold, answers):
    payload = {"task": name, "params": {}, "strict": True}
    payload["entry"] = {"question": "", "answer": gold, "metadata": metadata}
    for answer in [gold, *answers]:
        assert rg_module.score(payload, answer) == 1.0, answer
        assert rg_module.score(payload, answer + " + 7*x*X") == 0.0


def test_lists_keep_their_partial_credit():
    problem, payload = problem_of("spiral_matrix")
    payload["strict"] = False
    assert rg_module.score(payload, json.dumps([int(x) for x in problem.answer.split()])) == 0.1
    problem, payload = problem_of("string_insertion")
    payload["strict"] = False
    assert rg_module.score(payload, repr(list(problem.answer))) == 0.1


def test_every_valid_queens_board_is_right():
    problems = load_task("reasoning_gym:n_queens").problems("train", 30, 0)
    boards = [(p.payload, board) for p in problems for board in p.payload["entry"]["metadata"]["valid_answers"]]
    assert len(boards) > len(problems)
    for payload, board in boards:
        assert rg_module.score(payload, board) == 1.0
    payload, board = boards[0]
    assert rg_module.score({**payload, "strict": False}, repr([row.split() for row in board.split("\n")])) == 0.5


@pytest.mark.parametrize(
    "text", ["[]", "[[1, -2.5], ['a', True, None]]", "{1: (2,), 'b': {3}}", " [1,\n 2]\n", "1 ", "'a' 'b'", "-1"]
)
def test_literals(text):
    assert is_literal(text) and ast.literal_eval(text.strip()) is not ...


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "[a]",
        "f()",
        "1 + 1",
        "[x for x in []]",
        "{**a}",
        "[*a]",
        "f'{1}'",
        "a.b",
        "a[0]",
        "1 if 1 else 2",
        "[" * 300 + "]" * 300,
        "-" * 5000 + "1",
        "[" * 100000,
        "1, " * 10000,
        "...",
        "b'a'",
        "\x00",
        "lambda: 1",
        "1; 2",
    ],
)
def test_not_literals(text):
    assert not is_literal(text)


@pytest.mark.parametrize("text", ["1", "1 + 2*(3 - 4)/5", "-2**3 % 7 // 2", " 1.5e3 ", "+".join(["1"] * 400)])
def test_arithmetic(text):
    assert is_arithmetic(text) and is_polynomial(text) and is_elementary(text)


@pytest.mark.parametrize(
    "text",
    [
        "x(2)",
        "sin",
        "S('1')",
        "'1'",
        "x.real",
        "1 .real",
        "x[0]",
        "[1]",
        "sin(x=1)",
        "sin(*x)",
        "sin(x)(2)",
        "1j",
        "True",
        "1 < 2",
        "1 and 2",
        "lambda x: x",
        "x if 1 else 2",
        "(1, 2)",
        "1 # 2",
        "x := 1",
        "~1",
        "1 | 2",
        "eval(1)",
        "",
        "\uff45\uff56\uff41\uff4c(1)",
        "exp\\\n(1)",
        "__import__",
        "print(1)",
        "+".join(["1"] * 5000),
        "(" * 10000,
    ],
)
def test_not_arithmetic(text):
    assert not is_arithmetic(text)
    assert not is_polynomial(text)
    assert text == "sin" or not is_elementary(text)


def test_names_and_functions():
    assert is_elementary("x**2*sin(3*x)/2 - log(x, 10) + C1") and is_polynomial("3*x*Y**2")
    assert not is_polynomial("sin(x)") and not is_elementary("foo(x)") and not is_polynomial("xy")
    assert is_queens_board("_ Q\nQ _") and is_queens_board("[['Q', '_']]") and not is_queens_board("Q(1)")


# --- the scan that an upgrade of reasoning-gym or math-verify has to pass ---------------------------------------------

EVALUATORS = {"eval", "exec", "compile", "__import__", "parse_expr", "sympify", "nsimplify", "lambdify", "parse_latex"}
EVALUATORS |= {"literal_eval", "simplify", "S", "loads", "unsafe_load", "system", "Popen", "run"}
# what else in reasoning-gym calls something of that name, and why the answer does not get there
REVIEWED = {
    "arithmetic/basic_arithmetic.py": "eval of its own problem",
    "arithmetic/bitwise_arithmetic.py": "eval of its own problem; the answer goes to int()",
    "arithmetic/gsm_symbolic/generators_00_49.py": "eval of its own fractions",
    "arithmetic/gsm_symbolic/generators_50_99.py": "eval of its own fractions",
    "arithmetic/dice.py": "its own function called simplify",
    "algorithmic/number_sorting.py": "eval of the gold answer; the answer goes to json.loads()",
    "logic/propositional_logic.py": "its own functions called parse_expr and simplify",
    "code/bf.py": "its own compiler of its own program",
    "code/codeio.py": "exec of its own code; the answer goes to json.loads()",
}


def names_called(path: Path) -> set[str]:
    """The evaluators that a file calls; json.loads, re.compile and other methods of known modules do not count."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            if name in EVALUATORS and (owner, name) not in {("json", "loads"), ("re", "compile")}:
                found.add(name)
    return found


def test_every_evaluating_module_of_reasoning_gym_is_guarded_or_reviewed():
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    root = Path(reasoning_gym.__file__).parent
    files = [path for path in root.rglob("*.py") if "contrib" not in path.parts]
    evaluating = {path.relative_to(root).as_posix() for path in files if names_called(path)}
    module_of = {name: cls.__module__.removeprefix("reasoning_gym.") for name, (cls, _) in DATASETS.items()}
    guarded = {module_of[name].replace(".", "/") + ".py" for name in rg_module.GUARDS}
    assert guarded <= evaluating, "a guard that is no longer needed, or a scorer that evaluates in another way"
    assert evaluating - guarded - set(REVIEWED) == set(), "a new evaluator: guard its answer or review it here"
    assert set(REVIEWED) <= evaluating, "reviewed, but no longer evaluating"
    # every dataset of a guarded module is guarded
    assert {n for n, m in module_of.items() if m.replace(".", "/") + ".py" in guarded} == set(rg_module.GUARDS)


# --- math-verify -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gold", ["\\sqrt{2}", "\\frac{\\pi}{2}", "2", "x+1", "\\ln 2 + 1"])
@pytest.mark.parametrize(
    "answer",
    [
        "\\sum_{n=0}^{\\infty} (\\text{trap[0]})^n/n!",
        "\\sum_{n=0}^{\\infty} (\\mathit{trap[0]})^n/n!",
        "\\sum_{n=0}^{\\infty} (\\text{trap.x})^n/n! + 1",
        "\\prod_{n=1}^{\\infty} (1 + \\text{trap[0]}/n!)",
        "\\sum_{\\text{trap[0]}=0}^{\\infty} 1/(\\text{trap[0]})!",
        "\\text{trap[0]}",
        "trap[0]",
        "trap(0)",
    ],
)
def test_math_verify_does_not_run_names(gold, answer, monkeypatch):
    touched = []

    class Trap:
        def __getattr__(self, name):
            touched.append(name)
            raise AttributeError(name)

        def __getitem__(self, key):
            touched.append(key)
            return 1

        __call__ = __getitem__

    monkeypatch.setattr(builtins, "trap", Trap(), raising=False)
    assert jsonl_module.score({"gold": gold}, answer) == 0.0
    assert touched == []


def test_series_keep_their_value():
    assert jsonl_module._equal("e - \\sqrt{2}", "\\sum_{n=0}^{\\infty} 1/n! - \\sqrt{2}")
