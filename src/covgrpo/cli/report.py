"""``covgrpo report``."""

import argparse
from pathlib import Path
from typing import Any

from covgrpo.errors import UserError
from covgrpo.files import write_text

_EXAMPLE = """examples:
  covgrpo report runs/demo
  covgrpo report runs/grpo-s* runs/gaussian-s* --output comparison.html
  covgrpo report runs/a="plain GRPO" runs/b=weighted --figures figures --markdown summary.md
"""
_FORMATS = ("png", "svg", "pdf")


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "report",
        help="explain runs in one HTML file",
        description="Show runs, finished or not, in one HTML file that needs no network: curves, the covariance tail, "
        "weights through training, the most damped tokens, completions coloured by weight. Runs that differ in nothing "
        "but the seed are drawn as one curve with a band.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or FOLDER=LABEL")
    parser.add_argument(
        "--output", metavar="FILE", help="HTML file; default: report.html in the run's folder, or here for several runs"
    )
    parser.add_argument("--title", metavar="TEXT", help="title of the page; default: the run's name, or the set-ups")
    parser.add_argument("--markdown", metavar="FILE", help="also write a summary in Markdown")
    parser.add_argument("--figures", metavar="FOLDER", help="also draw each figure into a folder (needs matplotlib)")
    parser.add_argument("--formats", nargs="+", metavar="KIND", help="of the figures: png, svg, pdf (png and svg)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the report."""
    from covgrpo.report import collect, html_page, markdown_summary, read_run
    from covgrpo.suggest import check_choice

    if args.formats and not args.figures:
        raise UserError("--formats needs --figures.")
    formats = args.formats or ["png", "svg"]
    for kind in formats:
        check_choice("formats", kind, _FORMATS)
    runs = [read_run(*_folder_and_label(text)) for text in args.runs]
    content = collect(runs)
    title = args.title or (runs[0].label if len(runs) == 1 else ", ".join(group.label for group in content.groups))
    output = Path(args.output) if args.output else _default_output(runs)
    write_text(output, html_page(content, title))
    print(f"report: {output}")
    if args.markdown:
        write_text(Path(args.markdown), markdown_summary(content, title))
        print(f"summary: {args.markdown}")
    if args.figures:
        _draw(content, Path(args.figures), formats)
    for text in content.skipped:
        print(f"left out: {text}")
    return 0


def _folder_and_label(text: str) -> tuple[str, str | None]:
    """FOLDER or FOLDER=LABEL; a folder whose own name has an equals sign is one."""
    folder, sign, label = text.rpartition("=")
    return (folder, label) if sign and label and not Path(text).is_dir() else (text, None)


def _default_output(runs: list[Any]) -> Path:
    """A file in the run's folder; not through a link that came with the folder, which may lead anywhere."""
    if len(runs) > 1:
        return Path("report.html")
    path: Path = runs[0].path / "report.html"
    if path.is_symlink():
        raise UserError(f"{path} is a link; remove it, or name a file with --output.")
    return path


def _draw(content: Any, folder: Path, formats: list[str]) -> None:
    try:
        from covgrpo.report.figures import save_figures
    except ImportError as error:
        raise UserError("--figures needs matplotlib: pip install covgrpo[plot].") from error
    try:
        saved = save_figures(content, folder, formats)
    except OSError as error:
        raise UserError(f"cannot write figures to {folder} ({(error.strerror or str(error)).lower()}).") from error
    print(f"figures: {len(saved)} files in {folder}")
