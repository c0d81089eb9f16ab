"""Pages of curves, one for each regime, through the report: methods as curves, seeds as bands."""

from collections.abc import Mapping
from pathlib import Path

from covgrpo.files import write_text
from covgrpo.report import RunRecords, collect, html_page
from covgrpo.studies.records import Record
from covgrpo.studies.spec import Study


def write_pages(study: Study, records: Mapping[str, Record], folder: Path) -> list[Path]:
    """Write ``pages/REGIME.html`` for each regime that has a finished run.

    Raises:
        UserError: a page cannot be written.
    """
    written = []
    for regime in study.regimes:
        specs = [spec for spec in study.runs if spec.regime == regime and spec.id in records]
        if specs:
            path = folder / "pages" / f"{specs[0].regime_id or study.name}.html"
            runs = [_as_run(records[spec.id]) for spec in sorted(specs, key=lambda s: study.methods.index(s.method))]
            write_text(path, html_page(collect(runs), f"{study.name}: {regime}".rstrip(": ")))
            written.append(path)
    return written


def _as_run(record: Record) -> RunRecords:
    """A kept record as the report reads a run's folder; it has no tokens, samples and histograms."""
    steps = len(next(iter(record.curves.values()), []))
    metrics = [
        {"step": step + 1, **{name: values[step] for name, values in record.curves.items()}} for step in range(steps)
    ]
    options = {**record.options, "seed": record.seed, "method": record.method}
    return RunRecords(Path("kept-record"), record.method, config={"options": options}, metrics=metrics)
