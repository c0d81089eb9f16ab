"""What mkdocs does beside its own: the README is the front page, and links into the repository lead to pages.

The pages are written for the repository, so they link to files outside docs/ and use GitHub's Markdown. No public
address of the repository is assumed: each linked file becomes a page (Markdown, code) or a file (figures, tables) of
the site.

    README.md                         ->  index.md
    docs/methods.md                   ->  methods.md
    studies/main/results.md           ->  repository/studies/main/results.md
    src/covgrpo/core/tokens.py#L23    ->  repository/src/covgrpo/core/tokens.py.md#L-23
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = "repository/"
AS_THEY_ARE = (".md", ".png", ".csv")

FENCED = re.compile(r"^ *(`{3,})[^`\n]*\n.*?^ *\1`* *$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<=\]\()([^()\s]+)(?=\))")
MARKER = re.compile(r"( *)([-*+]|(\d{1,9})[.)]) +(?=\S)")


def on_files(files: Files, config: Any) -> Files:
    """Add the front page, and whatever of the repository the pages link to, link by link."""
    known = {repository_path(file.src_uri) for file in files.documentation_pages()}
    waiting = ["README.md", *sorted(known)]
    while waiting:
        path = waiting.pop()
        if path not in known:
            files.append(_added(path, config))
            known.add(path)
        if path.endswith(".md"):
            text = (ROOT / path).read_text(encoding="utf-8")
            waiting += sorted(set(linked_files(text, path)) - known)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point the links to the site's pages, and write lists as Python-Markdown reads them."""
    path = repository_path(page.file.src_uri)
    if path == "README.md":
        page.meta["hide"] = ["navigation"]  # it would hold nothing but the page itself
    return python_markdown(relinked(markdown, path)) if path.endswith(".md") else markdown


def site_path(path: str) -> str:
    """Where a file of the repository is on the site."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return ELSEWHERE + path + ("" if path.endswith(AS_THEY_ARE) else ".md")


def repository_path(page: str) -> str:
    """The file of the repository that a page of the site comes from."""
    if page == "index.md":
        return "README.md"
    if not page.startswith(ELSEWHERE):
        return f"docs/{page}"
    path = page.removeprefix(ELSEWHERE)
    return path if (ROOT / path).is_file() else path.removesuffix(".md")


def linked_files(text: str, path: str) -> list[str]:
    """Files outside docs/ that a page's relative links lead to."""
    targets = [_target(link, path)[0] for link in LINK.findall(FENCED.sub("", text)) if _is_relative(link)]
    return [target for target in targets if (ROOT / target).is_file() and not target.startswith("docs/")]


def relinked(text: str, path: str) -> str:
    """Return a page with each relative link led to the site's page of the file; links in blocks of code stay."""

    def led(match: re.Match[str]) -> str:
        if not _is_relative(match[0]):
            return match[0]
        target, anchor = _target(match[0], path)
        place = posixpath.relpath(site_path(target), posixpath.dirname(site_path(path)) or ".")
        return place + (f"#{re.sub('^L(?=[0-9])', 'L-', anchor)}" if anchor else "")

    return outside_code(text, lambda part: LINK.sub(led, part))


def outside_code(text: str, change: Any) -> str:
    """Return the text with ``change`` applied to what stands between its blocks of code."""
    parts, end = [], 0
    for block in FENCED.finditer(text):
        parts += [change(text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, change(text[end:])])


def python_markdown(text: str) -> str:
    """Return GitHub's Markdown with its lists as Python-Markdown wants them.

    There a list begins after an empty line, and what belongs to an item is indented by four columns a level. On GitHub
    a list may follow a line of text at once, and an item's content begins where its first word does.
    """
    written: list[str] = []
    open_items: list[int] = []  # the column at which each open item's content begins
    fence = ""
    after_blank = True
    for line in text.splitlines():
        words = line.strip()
        indent = len(line) - len(line.lstrip())
        item = None if fence else _item(line, open_items, after_blank)
        if not words or fence:
            pass
        elif item or after_blank or words.startswith(("#", "```")):
            while open_items and indent < open_items[-1]:
                open_items.pop()
        depth, column = len(open_items), open_items[-1] if open_items else 0
        if item:
            if not depth and not after_blank and not _in_list(written):
                written.append("")
            open_items.append(len(item[0]))
        written.append("    " * depth + line[min(indent, column) :] if words else "")
        if words.startswith("```"):
            fence = "" if fence and words.startswith(fence) else fence or words[: len(words) - len(words.lstrip("`"))]
        after_blank = not words
    return "\n".join(written) + "\n"


def _item(line: str, open_items: list[int], after_blank: bool) -> re.Match[str] | None:
    """The marker of a list item, if the line begins with one."""
    found = MARKER.match(line)
    if not found or len(found[1]) - max((c for c in [0, *open_items] if c <= len(found[1])), default=0) >= 4:
        return None
    interrupts = not after_blank and not open_items
    return None if interrupts and found[3] not in (None, "1") else found


def _in_list(written: list[str]) -> bool:
    """Whether the text written last is an item's."""
    for line in reversed(written):
        if not line.strip():
            return False
        if MARKER.match(line):
            return True
    return False


def _is_relative(link: str) -> bool:
    return not re.match(r"[a-z]+:|/", link)


def _target(link: str, path: str) -> tuple[str, str]:
    """File of the repository, and anchor, of a relative link on a page."""
    place, _, anchor = link.partition("#")
    return (posixpath.normpath(posixpath.join(posixpath.dirname(path), place)) if place else path), anchor


def _added(path: str, config: Any) -> File:
    inclusion = InclusionLevel.INCLUDED if path == "README.md" else InclusionLevel.NOT_IN_NAV
    if site_path(path).endswith(".md") and not path.endswith(".md"):
        return File.generated(config, site_path(path), content=code_page(path), inclusion=inclusion)
    return File.generated(config, site_path(path), abs_src_path=str(ROOT / path), inclusion=inclusion)


def code_page(path: str) -> str:
    """Return the page of a file of code: coloured, with the anchor ``L-12`` at line 12."""
    text = (ROOT / path).read_text(encoding="utf-8")
    shown = HtmlFormatter(lineanchors="L", cssclass="highlight", wrapcode=True)
    try:
        lexer = get_lexer_for_filename(path)
    except ClassNotFound:  # a notebook, say
        lexer = TextLexer()
    return f"---\nsearch: {{exclude: true}}\nhide: [toc]\n---\n# `{path}`\n\n" + highlight(text, lexer, shown)
