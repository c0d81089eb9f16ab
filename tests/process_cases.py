"""Runs of the command line in several processes on CPU, one after the other:

torchrun --nproc-per-node 2 tests/process_cases.py CASES.json RESULTS [fsdp2]

Each process writes RESULTS.RANK.json: exit code and output of each case. A case holds ``argv`` and may hold ``stop``
([rank, step]: that rank gets SIGTERM in that step) ``apart`` (a folder: the processes after the first work there, as
without a shared disk) and ``copy`` (two folders: the first is copied into the second beforehand).
"""

import contextlib
import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from covgrpo.cli import main as command_line
from covgrpo.runs.record.recorder import RunRecorder

RANK = int(os.environ.get("RANK", "0"))


def main(cases: str, results: str, engine: str = "ddp") -> None:
    """Run all cases, and keep what came of each as soon as it is there."""
    if engine == "fsdp2":
        import fsdp2_on_cpu

        fsdp2_on_cpu.enable()
    stop: list[int] = []
    stop_on_request(stop)
    here, found = os.getcwd(), []
    for case in json.loads(Path(cases).read_text()):
        stop[:] = case.get("stop", ())
        if RANK == 0 and "copy" in case:
            shutil.copytree(*(Path(here, name) for name in case["copy"]), dirs_exist_ok=True)
        os.chdir(Path(here, case["apart"] if RANK and "apart" in case else "."))
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            code = command_line(case["argv"])
        found.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
        Path(here, f"{results}.{RANK}.json").write_text(json.dumps(found))


def stop_on_request(stop: list[int]) -> None:
    """Signal this process at the beginning of a step: ``stop`` holds rank and step, or nothing."""

    def on_step_begin(self: RunRecorder, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if stop == [RANK, state.global_step + 1]:
            os.kill(os.getpid(), signal.SIGTERM)

    RunRecorder.on_step_begin = on_step_begin


if __name__ == "__main__":
    main(*sys.argv[1:])
