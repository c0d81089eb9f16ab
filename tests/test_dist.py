"""The wheel and the sdist as `make dist` builds them: whole, small, and working where nothing else of ours is."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from bare_environment import install, make_environment, run, site_packages

import covgrpo

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "scripts"))
from check_dist import MAX_BYTES, complaints  # noqa: E402

pytestmark = pytest.mark.slow

CORE = """
from importlib.metadata import version
import torch, covgrpo
assert covgrpo.__file__.startswith({where!r}), covgrpo.__file__
weights = covgrpo.gaussian_weights(torch.randn(4, 3), torch.randn(4), torch.ones(4, 3, dtype=torch.bool),
                                   torch.zeros(4, dtype=torch.long))
assert abs(float(weights.mean()) - 1) < 1e-5
assert version("covgrpo") == covgrpo.__version__
try:
    from covgrpo.trl import CovGRPOTrainer
except ImportError as error:
    print(error)
"""


def python(*arguments: str, cwd: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """What `make dist` builds, built elsewhere."""
    folder = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    return folder


def one(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_make_dist_builds_and_checks_by_these_commands():
    recipe = (ROOT / "Makefile").read_text().partition("\ndist: ")[2].partition("\n\n")[0]
    for command in ("-m build --no-isolation", "-m twine check --strict dist/*", "scripts/check_dist.py dist $(TAG)"):
        assert command in recipe


def test_both_are_whole_and_small_and_the_index_would_take_them(dist):
    assert complaints(dist) == []
    python("-m", "twine", "check", "--strict", *map(str, dist.iterdir()))


def test_what_is_wrong_is_found(dist, tmp_path):
    assert complaints(dist, f"v{covgrpo.__version__}9")[0].startswith(f"the tag is v{covgrpo.__version__}9 and the ")
    for file in dist.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with zipfile.ZipFile(one(tmp_path, "*.whl"), "a") as wheel:
        wheel.writestr("tests/test_core.py", "")
        wheel.writestr("covgrpo/large.bin", os.urandom(MAX_BYTES))
    name = one(tmp_path, "*.whl").name
    large, strange = complaints(tmp_path)
    assert re.fullmatch(rf"{re.escape(name)} has \d,\d{{3}},\d{{3}} bytes, over {MAX_BYTES:,}", large)
    assert strange == f"{name} holds tests/test_core.py"
    one(tmp_path, "*.tar.gz").unlink()
    assert "not one wheel and one sdist" in complaints(tmp_path)[0]


@pytest.mark.parametrize(("archive", "builder"), [("*.whl", []), ("*.tar.gz", ["hatchling"])])
def test_with_torch_alone_the_core_works_and_the_trainer_says_what_it_needs(dist, tmp_path, archive, builder):
    there = make_environment(tmp_path / "env", "torch", *builder)
    install(there, one(dist, archive), "--no-build-isolation")
    done = run(there, "-c", CORE.format(where=str(tmp_path)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"covgrpo\.trl needs trl, transformers, accelerate and datasets, which are not installed: pip install "
        r"'trl[<>=.,\d]+' 'transformers[<>=.,\d]+' 'accelerate[<>=.,\d]+' 'datasets[<>=.,\d]+' "
        r"\(or pip install covgrpo, which brings everything\)\.\n",
        done.stdout,
    )
    shown = subprocess.run([there.with_name("covgrpo"), "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"covgrpo {covgrpo.__version__}\n"


def test_the_demo_and_its_report_run_from_the_wheel(dist, tmp_path, tiny_folder):
    there = make_environment(tmp_path / "env")
    install(there, one(dist, "*.whl"))
    shared = "".join(f"{path}\n" for path in sys.path if path.endswith("site-packages"))
    (site_packages(tmp_path / "env") / "shared.pth").write_text(shared)  # all packages of this environment, behind
    command = str(there.with_name("covgrpo"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def covgrpo_there(*words: str) -> str:
        done = subprocess.run(
            [command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    small = ["--steps", "1", "--prompts-per-step", "2", "--num-generations", "4", "--no-evaluate"]
    out = covgrpo_there("demo", "--model", str(tiny_folder), *small)
    assert "next: covgrpo report runs/demo " in out
    config = json.loads((tmp_path / "runs/demo/config.json").read_text())["options"]
    assert (config["task"], config["learning_rate"], config["steps"]) == ("addition?min=1&max=9", 2e-5, 1)
    assert json.loads((tmp_path / "runs/demo/environment.json").read_text())["git"] is None
    assert "report: runs/demo/report.html" in covgrpo_there("report", "runs/demo")
