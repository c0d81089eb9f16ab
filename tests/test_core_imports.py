"""What importing the package pulls in: the core stands on torch alone, the package's root on nothing."""

import subprocess
import sys

import pytest

PROBE = "import sys; {statement}; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"


def modules_after(statement):
    """Top-level modules loaded in a fresh interpreter after `statement`."""
    command = [sys.executable, "-c", PROBE.format(statement=statement)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    ["import covgrpo.core", "import covgrpo; covgrpo.gaussian_weights; covgrpo.get_weighting('gaussian')"],
)
def test_core_needs_no_trainer_library(statement):
    loaded = modules_after(statement)
    assert "torch" in loaded
    assert not loaded & {"transformers", "trl", "accelerate", "datasets", "peft"}


def test_version_needs_no_torch():
    loaded = modules_after("import covgrpo; assert covgrpo.__version__")
    assert "covgrpo" in loaded
    assert not loaded & {"torch", "numpy", "transformers", "trl", "accelerate"}
