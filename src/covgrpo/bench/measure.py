"""Run both sides, step by step in turn, and sum up."""

import dataclasses
import multiprocessing
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from covgrpo.bench.case import PHASES, BenchCase
from covgrpo.bench.operations import matmul_peak, useful_operations
from covgrpo.bench.side_process import SIDES, run_side
from covgrpo.errors import UserError
from covgrpo.models import resolve_model
from covgrpo.tasks import load_task


@dataclass
class BenchResult:
    """Records of every timed step of each side, in order, and what follows from them."""

    case: BenchCase
    model: dict[str, Any]
    matmul_peak_flops: float
    steps: dict[str, list[dict[str, Any]]]
    peak_memory_bytes: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints. Seconds, bytes, fractions; ratios are stock TRL over ours."""
        sides = {side: self._side(side) for side in self.steps}
        return {
            "case": dataclasses.asdict(self.case),
            "model": self.model,
            "matmul_peak_flops": self.matmul_peak_flops,
            **sides,
            "ratios": self._ratios() if len(sides) == 2 else None,
        }

    def _side(self, side: str) -> dict[str, Any]:
        steps = self.steps[side]
        seconds = [step["step_s"] for step in steps]
        total = sum(seconds)
        tokens = sum(step["tokens"] for step in steps)
        sampling_s = sum(step["phases_s"]["sampling"] for step in steps)
        return {
            "step_s": {
                "median": statistics.median(seconds),
                "mean": total / len(steps),
                "min": min(seconds),
                "max": max(seconds),
                "all": seconds,
            },
            "share": {phase: sum(step["phases_s"][phase] for step in steps) / total for phase in PHASES},
            "tokens_per_s": tokens / total,
            "sampled_tokens_per_s": sum(step["drawn_tokens"] for step in steps) / max(sampling_s, 1e-9),
            "peak_memory_bytes": self.peak_memory_bytes[side],
            "peak_fraction": sum(step["operations"] for step in steps) / total / self.matmul_peak_flops,
            "zero_share": statistics.fmean(step["zero_share"] for step in steps),
            "reward": [step["reward"] for step in steps],
        }

    def _ratios(self) -> dict[str, float]:
        ours, stock = (self._side(side) for side in SIDES)
        pairs = zip(stock["step_s"]["all"], ours["step_s"]["all"], strict=True)
        return {
            "step_mean": stock["step_s"]["mean"] / ours["step_s"]["mean"],
            "step_median_of_pairs": statistics.median(a / b for a, b in pairs),
            "peak_memory": stock["peak_memory_bytes"] / ours["peak_memory_bytes"],
            "sampled_tokens_per_s": ours["sampled_tokens_per_s"] / stock["sampled_tokens_per_s"],
        }


def measure(
    case: BenchCase,
    sides: tuple[str, ...] = SIDES,
    progress: Callable[[str, int, float], None] = lambda side, step, seconds: None,
) -> BenchResult:
    """Time ``case.steps`` training steps of each side, in turn, ours first.

    Each side is a process of its own with its own model; stock TRL samples as ever, is timed at it, and then gets our
    completions, so that rewards, advantages and the update are on the same tokens. While one side steps, the other
    waits.

    Raises:
        UserError: bad input, or a side that failed.

    """
    case.check()
    resolve_model(case.model)
    load_task(case.task, {})
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["covgrpo.bench.libraries"])
    workers = {side: _Worker.start(context, case, side) for side in sides}
    try:
        models = {side: worker.receive("model") for side, worker in workers.items()}
        # Measured when both have loaded and wait.
        peak = matmul_peak(bf16=models[sides[0]]["bf16"], threads=models[sides[0]]["threads"])
        steps: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for number in range(-case.warmup, case.steps):
            first: dict[str, Any] | None = None
            for side, worker in workers.items():
                record = worker.step(first["completions"] if first else None)
                first = first or record
                _check_same(first, record, side)
                if number >= 0:
                    steps[side].append(_summary(record, models[side]))
                    progress(side, number + 1, record["step_s"])
        memory = {side: worker.receive("done") for side, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.stop()
    return BenchResult(case, models[sides[0]], peak, steps, memory)


@dataclass
class _Worker:
    process: Any
    connection: Any
    side: str

    @classmethod
    def start(cls, context: Any, case: BenchCase, side: str) -> "_Worker":
        connection, theirs = context.Pipe()
        process = context.Process(target=run_side, args=(theirs, case, side))
        process.start()
        theirs.close()
        return cls(process, connection, side)

    def receive(self, kind: str) -> Any:
        try:
            found, value = self.connection.recv()
        except EOFError:
            self.process.join()
            raise UserError(
                f"bench: the process of {self.side} ended with exit code {self.process.exitcode}; "
                "out of memory? A smaller micro_batch_size needs less."
            ) from None
        if found == "error":
            raise UserError(f"bench: {value}")
        if found != kind:
            raise RuntimeError(f"expected {kind} from {self.side}, got {found}")
        return value

    def step(self, completions: list[list[int]] | None) -> dict[str, Any]:
        self.receive("ready")
        self.connection.send(("step", completions))
        return dict(self.receive("step"))

    def stop(self) -> None:
        self.connection.close()  # a worker that waits for its release ends at that
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


def _check_same(first: dict[str, Any], other: dict[str, Any], side: str) -> None:
    for name in ("prompts", "completions", "reward", "has_advantage"):
        if first[name] != other[name]:
            raise UserError(f"bench: {side} did another step: its {name} differ, so that times do not compare.")


def _summary(record: dict[str, Any], model: dict[str, int]) -> dict[str, Any]:
    has = record["has_advantage"]
    return {
        **{name: record[name] for name in ("step_s", "phases_s", "drawn_tokens", "reward")},
        "tokens": sum(map(len, record["completions"])),
        "zero_share": 1 - sum(has) / len(has),
        "operations": useful_operations(
            [len(prompt) for prompt in record["prompts"]], list(map(len, record["completions"])), has, model
        ),
    }
