"""The tests of the core fail where the method is broken: see docs/mutations.md."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_broken_ingredient_is_caught_by_its_test():
    script = Path(__file__).resolve().parent.parent / "scripts" / "mutation_check.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 8 and all(line.startswith("ok  ") for line in lines), done.stdout
