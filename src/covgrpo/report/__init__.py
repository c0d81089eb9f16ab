"""Reports of runs: one HTML file, figures, a Markdown summary; from the files of a run folder alone."""

from covgrpo.report.content import Content, collect
from covgrpo.report.markdown import markdown_summary
from covgrpo.report.page import html_page
from covgrpo.report.reading import RunRecords, read_run

__all__ = ["Content", "RunRecords", "collect", "html_page", "markdown_summary", "read_run"]
