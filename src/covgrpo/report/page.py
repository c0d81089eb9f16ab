"""The report as one HTML file that needs nothing else: no network, no fonts, no other file."""

import html
import json
from importlib.resources import files

from covgrpo.report.content import Content

# Whatever a completion holds, the page may neither load nor send anything.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"


def html_page(content: Content, title: str) -> str:
    """Return the page.

    Args:
        content: what to show.
        title: plain text.

    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{_static("uplot.css")}
{_static("report.css")}
</style>
</head>
<body>
<header><h1>{html.escape(title)}</h1></header>
<main id="report"><noscript>This report draws itself with JavaScript, which is off.</noscript></main>
<div id="tip" role="tooltip" hidden></div>
<script type="application/json" id="content">{_embedded(content)}</script>
<script>{_static("uplot.js")}</script>
<script>{_static("ranges.js")}</script>
<script>{_static("report.js")}</script>
</body>
</html>
"""


def _static(name: str) -> str:
    return files("covgrpo.report").joinpath("static", name).read_text(encoding="utf-8")


def _embedded(content: Content) -> str:
    """JSON that cannot end the script element it stands in, whatever text a completion holds."""
    text = json.dumps(content.to_dict(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
