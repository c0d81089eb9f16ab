"""The settings of a process are made before torch loads, for its children too, and leave alone what is set already."""

import json
import os
import subprocess
import sys

import pytest

NAMES = ["GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"]
PROBE = """
import json, os, sys
import covgrpo.cli.listing
from covgrpo.cpu_defaults import set_cpu_defaults
loaded = "torch" in sys.modules
set_cpu_defaults()
print(json.dumps({"torch": loaded, **{name: os.environ.get(name) for name in NAMES}}))
"""


def settled(**environment: str) -> dict:
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    code = f"NAMES = {NAMES!r}" + PROBE
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are those of Linux")
def test_settings_come_before_torch_and_a_users_own_win():
    found = settled()
    assert not found.pop("torch"), "the command line has loaded torch before the settings could matter"
    assert found == dict(zip(NAMES, ["1000", "1", str(2**31 - 1), str(32 * 2**20)], strict=True))
    assert settled(GOMP_SPINCOUNT="7", MALLOC_TRIM_THRESHOLD_="5")["GOMP_SPINCOUNT"] == "7"
    assert settled(MALLOC_TRIM_THRESHOLD_="5")["MALLOC_TRIM_THRESHOLD_"] == "5"


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are those of Linux")
def test_the_command_line_makes_them(monkeypatch, capsys):
    from covgrpo.cli import main

    monkeypatch.delenv("GOMP_SPINCOUNT")
    assert main(["models"]) == 0
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    capsys.readouterr()
