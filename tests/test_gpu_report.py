"""`make test-gpu` works: its tests run on the CPU when asked to, and its script writes the table of docs/gpu.md."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("gpu_report", ROOT / "scripts" / "gpu_report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_gpu_tests_run_on_a_cpu_when_asked_to_and_skip_otherwise(tmp_path, script):
    """The short ones; the others are slow copies of tests that run on CPUs anyway."""
    report = tmp_path / "tests.xml"
    argv = [sys.executable, "-m", "pytest", "-q", "tests/gpu/test_core_on_gpu.py", f"--junitxml={report}"]
    argv += ["-p", "no:cacheprovider"]
    environment = {**os.environ, "COVGRPO_GPU_TESTS": "cpu"}
    assert subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True).returncode == 0
    assert "0 failed, 0 skipped" in script.tests_of(report)
    assert script.tests_of(report).split()[1] != "0"


@pytest.mark.slow
def test_a_case_is_measured_and_written(tmp_path, script, monkeypatch):
    page = tmp_path / "gpu.md"
    page.write_text(f"# On a GPU\n{script.BEGIN}\nNot run yet.\n{script.END}\nThe end.\n")
    monkeypatch.setattr(script, "CASES", {"tiny": {"checkpointing": {"gradient_checkpointing": True}}})
    small = {"prompts_per_step": 2, "num_generations": 2, "prompt_length": 12, "completion_length": 4}
    monkeypatch.setattr(script, "WORKLOAD", {**small, "zero_share": 0.0})
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", "--shapes", "tiny", "--steps", "1", "--output", str(page)])
    assert script.main() == 0
    text = page.read_text()
    assert text.startswith("# On a GPU\n")
    assert text.endswith("\nThe end.\n")
    cells = text.split("| tiny | checkpointing |")[1].split("\n")[0].split("|")
    ours, stock, times = map(float, cells[:3])
    assert times == pytest.approx(stock / ours, rel=0.02, abs=0.01)  # the cells are rounded
    assert "torch 2." in text


def test_a_case_that_fails_is_a_line(script, monkeypatch):
    def fails(case):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(script, "measure", fails)
    rows = script.rows_of(["tiny"], 1)
    assert len(rows) == len(script.CASES["tiny"])
    assert all("failed: out of memory" in row and row.count("|") == len(script.COLUMNS) + 1 for row in rows)


def test_failed_tests_are_named(tmp_path, script):
    path = tmp_path / "tests.xml"
    path.write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1"><testcase name="a"/>'
        '<testcase name="b"><failure/></testcase><testcase name="c"/></testsuite></testsuites>'
    )
    assert script.tests_of(path) == "Tests: 1 passed, 1 failed, 1 skipped. Failed: `b`."


def test_without_a_gpu_it_says_so(script, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(script.torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", "--output", str(tmp_path / "gpu.md")])
    assert script.main() == 2
    assert "there is no GPU here" in capsys.readouterr().err
    assert not (tmp_path / "gpu.md").exists()


def test_the_page_has_the_markers(script):
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert page.count(script.BEGIN) == page.count(script.END) == 1


def test_some_lines_alone_leave_the_page_as_it_is(tmp_path, script, monkeypatch):
    measured = []
    monkeypatch.setattr(script, "measure", measured.append)  # what it returns makes a line that says "failed"
    page = tmp_path / "gpu.md"
    argv = ["gpu_report.py", "--shapes", "tiny", "--output", str(page), "--only"]
    monkeypatch.setattr(sys, "argv", [*argv, "micro-batches"])
    assert script.main() == 0
    assert [case.micro_batch_size for case in measured] == [8]
    monkeypatch.setattr(sys, "argv", [*argv, "nothing of this name"])
    assert script.main() == 2 and len(measured) == 1
    assert not page.exists()
