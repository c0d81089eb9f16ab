"""The report as one HTML file that needs nothing else: no network, no fonts, no other file."""

import base64
import hashlib
import html
import json
from collections.abc import Iterable
from importlib.resources import files

from covgrpo.report.content import Content

_STYLES, _SCRIPTS = ("uplot.css", "report.css"), ("uplot.js", "ranges.js", "report.js")


def html_page(content: Content, title: str) -> str:
    """Return the page.

    Args:
        content: what to show.
        title: plain text.

    """
    style = "\n" + "\n".join(map(_static, _STYLES)) + "\n"
    scripts = [_static(name) for name in _SCRIPTS]
    elements = "\n".join(f"<script>{text}</script>" for text in scripts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_policy(style, scripts)}">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header><h1>{html.escape(title)}</h1></header>
<main id="report"><noscript>This report draws itself with JavaScript, which is off.</noscript></main>
<div id="tip" role="tooltip" hidden></div>
<script type="application/json" id="content">{_embedded(content)}</script>
{elements}
</body>
</html>
"""


def _policy(style: str, scripts: Iterable[str]) -> str:
    """Whatever a completion holds: the page runs its own scripts alone, and loads and sends nothing.

    By their hashes (https://www.w3.org/TR/CSP3/), so that no script or style of another's runs, were it to get in; and
    no text becomes markup in a script (trusted types, where the browser has them).
    """
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            f"style-src {_hash(style)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _static(name: str) -> str:
    return files("covgrpo.report").joinpath("static", name).read_text(encoding="utf-8")


def _embedded(content: Content) -> str:
    """JSON that cannot end the script element it stands in, whatever text a completion holds."""
    text = json.dumps(content.to_dict(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
