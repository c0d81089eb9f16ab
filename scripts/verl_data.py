"""A task of covgrpo as verl's parquet files.

python scripts/verl_data.py TASK FOLDER [--format think_math] [--format-weight 1] [--train 7000] [--eval 500] [--seed 0]
"""

import argparse
from pathlib import Path

from datasets import Dataset

from covgrpo.tasks import get_answer_format, load_task
from covgrpo.verl.rewards import verl_row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--format", default="think_math")
    parser.add_argument("--format-weight", type=float, default=1.0)
    parser.add_argument("--train", type=int, default=7000)
    parser.add_argument("--eval", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    task, answer_format = load_task(options.task), get_answer_format(options.format)
    options.folder.mkdir(parents=True, exist_ok=True)
    extra = {"answer_format": answer_format.name, "format_weight": options.format_weight}
    for split, count in (("train", options.train), ("eval", options.eval)):
        problems = task.problems(split, count, options.seed)
        rows = [verl_row(task.verifier, problem, answer_format.instruction, extra) for problem in problems]
        path = options.folder / f"{split}.parquet"
        Dataset.from_list(rows).to_parquet(str(path))
        print(f"{path}: {len(rows)} problems")


if __name__ == "__main__":
    main()
