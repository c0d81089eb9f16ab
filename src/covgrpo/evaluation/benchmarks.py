"""The paper's five mathematics benchmarks by name, from the hub, or any of them (or others) from a JSON-lines file."""

from dataclasses import dataclass
from pathlib import Path

from covgrpo.errors import UserError
from covgrpo.suggest import did_you_mean_or_known
from covgrpo.tasks import Problem
from covgrpo.tasks.hub import hub_rows, problems_in
from covgrpo.tasks.jsonl import read_problems


@dataclass(frozen=True)
class Benchmark:
    r"""Where a benchmark lies on the hub and which columns hold what.

    Args:
        dataset: hub id.
        split: of the data set.
        question: column.
        answer: column of the gold answer; a list's first entry; of a worked solution the last ``\boxed``.
        size: problems.

    """

    dataset: str
    split: str
    question: str
    answer: str
    size: int


# As in open-rs, with which the paper (arXiv 2605.11538) evaluated.
BENCHMARKS = {
    "aime24": Benchmark("HuggingFaceH4/aime_2024", "train", "problem", "answer", 30),
    "math500": Benchmark("HuggingFaceH4/MATH-500", "test", "problem", "answer", 500),
    "amc23": Benchmark("knoveleng/AMC-23", "train", "problem", "answer", 40),
    "minerva": Benchmark("knoveleng/Minerva-Math", "train", "problem", "solution", 272),
    "olympiadbench": Benchmark("knoveleng/OlympiadBench", "train", "question", "answer", 675),
}


def load_benchmark(name: str) -> list[Problem]:
    """The problems of a benchmark, in its order.

    Args:
        name: a key of :data:`BENCHMARKS`, or the path of a JSON-lines file of {"problem", "answer", "id"?}.

    Raises:
        UserError: neither; a file or data set that cannot be read; a line or row that is no problem.
    """
    if name in BENCHMARKS:
        benchmark = BENCHMARKS[name]
        rows = hub_rows(benchmark.dataset, "", benchmark.split)
        return problems_in(rows, name, benchmark.question, benchmark.answer)
    if Path(name).suffix in (".jsonl", ".json") or Path(name).is_file():
        return read_problems(name)
    raise UserError(f"benchmark {name!r} is unknown and no file.{did_you_mean_or_known(name, BENCHMARKS)}")
