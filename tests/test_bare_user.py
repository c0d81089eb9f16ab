"""A user without a home and a name, in a locale that knows ASCII alone, as services and containers have them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_cases import SMALL

SCRIPT = """
import os, pwd, sys

def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = unknown
from covgrpo.cli import main
assert "HOME" not in os.environ and sys.flags.utf8_mode == 0
assert sys.stdout.encoding.lower() in ("ascii", "us-ascii", "ansi_x3.4-1968")
for line in sys.stdin:
    code = main(line.rstrip("\\n").split("\\t"))
    assert code == 0, f"{line} {code}"
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="users and locales of POSIX")
def test_every_command_without_a_home(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"problem": "é∑ + 1?", "answer": "2"}\n', encoding="utf-8")
    (tmp_path / "c.jsonl").write_text('{"id": "p/1", "completion": "é 2"}\n', encoding="utf-8")
    (tmp_path / "tiny").symlink_to(tiny_folder)
    task = ["--task", "jsonl:p.jsonl?split=all", "--verifier-workers", "1", "--verifier-timeout", "60"]
    lines = [
        ["demo", "--help"],
        ["train", *task, "--model", "tiny", "--output", "run", *SMALL, "--evaluate", "--eval-samples", "1"],
        ["report", "run", "--title", "é"],
        ["eval", "run", "--samples", "0", "--problems", "1"],
        ["eval", "--benchmark", "p.jsonl", "--completions", "c.jsonl", "--verifier-workers", "1"],
    ]
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    variables |= {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path, input="".join("\t".join(words) + "\n" for words in lines).encode(), capture_output=True,
        env={**variables, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "HF_HUB_OFFLINE": "1"},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
    assert (tmp_path / "run" / "report.html").exists()
