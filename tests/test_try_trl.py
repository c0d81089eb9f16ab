"""scripts/try_trl.py: a version that fits, one that does not, one that cannot be had. Nothing is fetched."""

import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "scripts"))
import try_trl  # noqa: E402


@pytest.fixture
def tried(tmp_path, monkeypatch):
    """Try a version with no index but a folder, in which there is a TRL of another shape: 99.0."""
    wheel = tmp_path / "trl-99.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("trl/__init__.py", "GRPOTrainer = GRPOConfig = None\n")
        archive.writestr("trl-99.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: trl\nVersion: 99.0\n")
        archive.writestr("trl-99.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("trl-99.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    def run(*arguments):
        command = [sys.executable, str(ROOT / "scripts" / "try_trl.py"), *arguments, "--seams-only"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)

    return run


@pytest.mark.slow
def test_the_version_that_is_installed_fits(tried):
    done = tried(version("trl"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"verdict: trl=={version('trl')} fits by its seams"


@pytest.mark.slow
def test_another_trl_does_not_fit_and_what_broke_is_named(tried):
    done = tried("99.0")
    assert done.returncode == 1
    assert done.stdout.startswith("trl 99.0, transformers ")
    broken, verdict = done.stdout.splitlines()[-2:]
    assert broken.startswith("  tests/test_seams.py: ModuleNotFoundError: No module named 'trl.trainer'")
    assert verdict == "verdict: trl==99.0 does not fit: 1 of the tests of its seams fail"


@pytest.mark.slow
def test_a_version_that_cannot_be_had_is_no_verdict(tried):
    done = tried("98.0")
    assert done.returncode == 2
    assert done.stdout.startswith("cannot be tried: ERROR: No matching distribution found for trl==98.0")
    assert "verdict" not in done.stdout


def test_what_is_run_is_there():
    for name in (*try_trl.SEAMS, *try_trl.EXACT):
        assert (ROOT / name).is_file()
    assert f"def {try_trl.LEFT_OUT}(" in (ROOT / try_trl.SEAMS[0]).read_text()


def test_the_table_of_upgrading_has_the_range_that_is_required():
    table = (ROOT / "UPGRADING.md").read_text()
    assert f"| {version('trl')} | fits |" in table
