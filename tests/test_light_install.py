"""`pip install --no-deps covgrpo` beside torch: the core works, any other part says in one sentence what it needs."""

import subprocess
import sys
from pathlib import Path

import pytest
from bare_environment import make_environment, run, site_packages

import covgrpo
from covgrpo.cli import main
from covgrpo.errors import UserError
from covgrpo.models import builtin
from covgrpo.packages import MissingPackageError, explain, require, requirement
from covgrpo.tasks import list_tasks, load_task

SOURCE = Path(covgrpo.__file__).parent.parent
CORE = """
import sys
import torch, covgrpo
logps = torch.randn(8, 5)
weights = covgrpo.gaussian_weights(
    logps, torch.randn(8), torch.ones(8, 5, dtype=torch.bool), torch.arange(8) // 4
)
assert weights.shape == (8, 5) and abs(float(weights.mean()) - 1) < 1e-5
import covgrpo.metrics, covgrpo.rewards, covgrpo.tasks, covgrpo.verify
import covgrpo.engines.tinker, covgrpo.engines.skyrl, covgrpo.engines.training_batch, covgrpo.report
from covgrpo.trl import METHODS
for name in ("addition", "countdown", "digits:sort"):
    task = covgrpo.tasks.load_task(name)
    problem = task.problems("train", 1, 0)[0]
    with covgrpo.verify.VerifierPool(task.verifier, 1) as pool:
        assert pool.score([(problem.payload, problem.answer)])[0].failure is None
"""


@pytest.fixture(scope="module")
def with_torch(tmp_path_factory):
    """An environment with torch, what torch needs, and covgrpo from here."""
    python = make_environment(tmp_path_factory.mktemp("bare") / "env", "torch")
    (site_packages(python.parent.parent) / "covgrpo.pth").write_text(f"{SOURCE}\n")
    return python


def said(python, code, folder):
    """The one line that a script's end prints: its error."""
    done = run(python, "-c", code, cwd=folder)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_core_tasks_rewards_and_other_engines_need_torch_alone(with_torch, tmp_path):
    done = run(with_torch, "-c", CORE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "transformers" not in {path.name for path in site_packages(with_torch.parent.parent).iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "part", "packages"),
    [
        ("from covgrpo.trl import CovGRPOTrainer", "covgrpo.trl", ["trl", "transformers", "accelerate"]),
        ("import covgrpo.trl; covgrpo.trl.CovGRPOConfig", "covgrpo.trl", ["trl", "transformers", "accelerate"]),
        ("from covgrpo.tasks import load_task; load_task('reasoning_gym:chain_sum')", "Task 'reasoning_gym:chain_sum'",
         ["reasoning-gym"]),
        ("from covgrpo.tasks import load_task; load_task('hub:a/b')", "Task 'hub:a/b'", ["math-verify", "datasets"]),
        ("from covgrpo.models import load_model; load_model('smollm2-135m')", "model smollm2-135m",
         ["transformers", "gguf"]),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("cache")
def test_a_part_names_all_that_it_lacks(with_torch, tmp_path, code, part, packages):
    line = said(with_torch, code, tmp_path)
    assert line.startswith(f"covgrpo.packages.MissingPackageError: {part} needs ")
    listed, _, command = line.partition(" not installed: pip install ")
    assert all(f"{package}" in listed and f"'{package}" in command for package in packages)
    assert line.endswith(" (or pip install covgrpo, which brings everything).")


@pytest.mark.slow
@pytest.mark.parametrize("words", [["train", "--task", "addition"], ["demo"]])
def test_a_command_that_lacks_a_package_ends_with_one_line(with_torch, tmp_path, words):
    done = run(with_torch, "-m", "covgrpo", *words, cwd=tmp_path)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]  # torch may warn before it that there is no numpy
    assert line.startswith(f"covgrpo: covgrpo {words[0]} needs ") and " not installed: pip install '" in line
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_commands_that_need_nothing_work(with_torch, tmp_path):
    for words in (["--version"], ["train", "--help"], ["models"]):
        done = run(with_torch, "-m", "covgrpo", *words, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")


# --- each part here, with one package out of sight -----------------------------------------------------------------


def test_without_reasoning_gym(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(
        MissingPackageError, match=r"^Task 'reasoning_gym:chain_sum' needs reasoning-gym, which is not "
    ):
        load_task("reasoning_gym:chain_sum")
    assert {info.name for info in list_tasks()} >= {"addition:", "reasoning_gym:NAME"}
    assert main(["tasks"]) == 0
    assert "needs reasoning-gym" in capsys.readouterr().out


def test_without_math_verify(monkeypatch, tmp_path, capsys):
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"problem": "1+1", "answer": "2"}\n')
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(MissingPackageError, match=r"needs math-verify, which is not installed: pip install 'math-ver"):
        load_task(f"jsonl:{problems}")
    completions = tmp_path / "completions.jsonl"
    completions.write_text('{"id": "problems/1", "completion": "2"}\n')
    assert main(["eval", "--benchmark", str(problems), "--completions", str(completions)]) == 2
    assert capsys.readouterr().err.startswith("covgrpo: benchmark ")


def test_without_gguf_nothing_is_fetched(monkeypatch, cache):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(builtin, "provide_file", lambda *_: pytest.fail("fetched"))
    with pytest.raises(MissingPackageError, match=r"^model smollm2-135m needs gguf, which is not installed: pip inst"):
        builtin.materialise("smollm2-135m")


def test_a_model_in_the_cache_needs_no_gguf(monkeypatch, conversions):
    folder = builtin.materialise("smollm2-135m")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert builtin.materialise("smollm2-135m") == folder


def test_without_trl_the_methods_can_be_looked_up_all_the_same(monkeypatch):
    import covgrpo.trl as engine

    monkeypatch.setitem(sys.modules, "trl", None)
    assert "gaussian" in engine.METHODS
    with pytest.raises(MissingPackageError, match=r"^covgrpo\.trl needs trl, which is not installed: pip install 'trl"):
        _ = engine.CovGRPOTrainer


def test_without_torch_the_root_says_so():
    code = "import sys; sys.modules['torch'] = None; import covgrpo; covgrpo.gaussian_weights"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert "MissingPackageError: covgrpo needs torch, which is not installed" in done.stderr


# --- the sentence --------------------------------------------------------------------------------------------------


def test_the_error_is_bad_input_to_the_command_line_and_an_import_error_to_scripts():
    with pytest.raises(ImportError) as raised:
        require("this", "covgrpo_has_no_such_module")
    assert isinstance(raised.value, UserError)
    assert str(raised.value) == (
        "this needs covgrpo_has_no_such_module, which is not installed: pip install 'covgrpo_has_no_such_module' "
        "(or pip install covgrpo, which brings everything)."
    )
    require("that", "torch", "json")  # nothing is missing


def test_the_range_is_the_one_of_the_package():
    ranges = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert requirement("trl").replace(" ", "").split("trl")[1].split(",")[0] in ranges
    assert requirement("yaml").startswith("pyyaml>=")
    assert requirement("not_ours") == "not_ours"


def test_only_packages_that_are_ours_are_explained():
    for name in ("covgrpo.no_such_part", "own_module", None):
        assert explain(ModuleNotFoundError("?", name=name), "covgrpo train") is None
    found = explain(ModuleNotFoundError("?", name="trl.trainer"), "covgrpo train")
    assert str(found).startswith("covgrpo train needs trl, which is not installed: pip install 'trl")
