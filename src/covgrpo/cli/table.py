"""``covgrpo table``."""

import argparse
from typing import Any

_EXAMPLE = """examples:
  covgrpo eval runs/a --benchmark math500 --label gaussian --result results/gaussian-math500.json
  covgrpo table results/*.json --paper 1.5b
  covgrpo table results/*.json --csv > table.csv
"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "table",
        help="put evaluated models into the paper's table",
        description="A row for each label among files of `covgrpo eval --benchmark NAME --result FILE`, a column for "
        "each benchmark; fractions with 95 %% intervals over problems.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", nargs="+", metavar="FILE", help="result of covgrpo eval")
    parser.add_argument(
        "--paper", metavar="SIZE", help="also the paper's rows (1.5b or 7b) and the differences to them, by label"
    )
    parser.add_argument("--csv", action="store_true", help="print CSV instead of Markdown")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    from covgrpo.evaluation.table import differences, paper_rows, read_results, table_cells, to_csv, to_markdown

    rows = read_results(args.results)
    if args.paper:
        rows = [*rows, *paper_rows(args.paper), *differences(rows, args.paper)]
    lines = table_cells(rows)
    print(to_csv(lines) if args.csv else to_markdown(lines), end="")
    return 0
