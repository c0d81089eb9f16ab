"""The documentation site: it builds without a warning, leads nowhere wrong, fetches nothing, and shows what is written.

GitHub's reading of each page, by markdown-it, is the measure: as many headings, items, rows and blocks on the site.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from html import unescape
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import pypi_readme
import site_docstrings
import site_hooks

pytestmark = pytest.mark.slow  # mkdocs runs in another process

ROOT = Path(__file__).resolve().parents[1]

WRITTEN = ["README.md", *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md")))]
WRITTEN = [path for path in WRITTEN if not path.startswith("docs/api/")]  # those are made of docstrings
PARTS = ("h1", "h2", "h3", "li", "ol", "tr", "td", "pre", "img", "strong")
ATTRIBUTE = re.compile(r"""<(\w+)[^>]*?\s(?:href|src)=(?:"([^"]*)"|'([^']*)'|([^\s>]+))""")
ID = re.compile(r"""\sid=(?:"([^"]*)"|([^\s>"]+))|<a [^>]*name="([^"]*)\"""")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; fails with what mkdocs said."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """Path on the site -> HTML."""
    return {str(p.relative_to(site)): p.read_text(encoding="utf-8") for p in site.rglob("*.html")}


def article(html: str) -> str:
    return html.partition("<article")[2].partition("</article>")[0]


def test_every_part_of_the_site_is_there(pages):
    assert {"index.html", "first-steps.html", "method.html", "log.html", "results.html", "api/core.html"} <= set(pages)
    assert len([name for name in pages if name.startswith("how-to/")]) == 8


def test_the_front_page_is_the_readme(pages):
    assert not (ROOT / "docs/index.md").exists()
    front = unescape(re.sub("<[^>]+>", "", article(pages["index.html"])))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [heading for heading in re.findall(r"^## (.+)$", readme, re.MULTILINE) if heading not in front] == []


def test_nothing_is_fetched_from_elsewhere(pages):
    for name, html in pages.items():
        loaded = [a or b or c for tag, a, b, c in ATTRIBUTE.findall(html) if tag in ("script", "link", "img", "iframe")]
        assert loaded
        assert [url for url in loaded if re.match(r"(https?:)?//", url)] == [], name


def test_every_link_leads_to_a_page_and_an_anchor(site, pages):
    anchors = {name: {unescape(a or b or c) for a, b, c in ID.findall(html)} for name, html in pages.items()}
    dead, followed = [], 0
    for name, html in pages.items():
        if name == "404.html":
            continue  # its links are those of the root
        for _, *quoted in ATTRIBUTE.findall(html):
            link = unescape("".join(quoted))
            if re.match(r"[a-z]+:|//", link):
                continue
            place, _, anchor = link.partition("#")
            target = os.path.normpath(os.path.join(os.path.dirname(name), place)) if place else name
            followed += 1
            if not (site / target).exists() or (anchor and target in anchors and anchor not in anchors[target]):
                dead.append(f"{name}: {link}")
    assert followed > 1000
    assert dead == []


@pytest.mark.parametrize("path", WRITTEN)
def test_a_page_has_the_parts_that_github_shows(path, pages):
    html = article(pages[site_hooks.site_path(path).removesuffix(".md") + ".html"])
    text = (ROOT / path).read_text(encoding="utf-8")
    github = MarkdownIt("commonmark").enable("table").render(text)
    counts = [Counter(re.findall(rf"<({'|'.join(PARTS)})\b", part)) for part in (github, html)]
    assert counts[0] == counts[1]


def test_a_linked_line_of_code_is_the_line(site, pages):
    """As docs/architecture.md links to them."""
    links = re.findall(r'href="(repository/src/[^"#]+)#(L-\d+)">', article(pages["architecture.html"]))
    assert len(links) > 20
    path, anchor = next(link for link in links if link[0].endswith("core/tokens.py.html"))
    line = pages[path].partition(f'id="{anchor}"')[2].partition('<a id="L-')[0]
    number = int(anchor.removeprefix("L-"))
    source = (ROOT / "src/covgrpo/core/tokens.py").read_text(encoding="utf-8").splitlines()
    assert unescape(re.sub("<[^>]*>", "", line.partition(">")[2])).strip() == source[number - 1].strip() != ""


def test_the_api_has_signatures_shapes_and_formulas(pages):
    core = unescape(re.sub("<[^>]+>", "", article(pages["api/core.html"])))
    for words in (
        "padded_mean: bool = False",
        "(B,) or (B, T) any float dtype",
        "w~     = w * N / sum(w)",
        "ValueError",
    ):
        assert words in core
    for name in (
        "CovGRPOTrainer",
        "CovGRPOConfig",
        "RunWriter",
        "TokenDiagnostics",
        "load_task",
        "evaluate",
        "WEIGHTINGS",
    ):
        assert any(re.search(rf"<h2[^>]*>\s*(<[^>]*>\s*)*{name}\b", html) for html in pages.values()), name


def test_lists_are_written_as_python_markdown_reads_them():
    github = (
        "Words:\n- one\n  more of one\n- two\n  - inner\n\n    inner's second part\n\n"
        "  | a |\n  |---|\n\n1. first\n   ```\n   - code\n   ```\n\nAfter.\n2026. no item\n"
    )
    assert site_hooks.python_markdown(github) == (
        "Words:\n\n- one\n    more of one\n- two\n    - inner\n\n        inner's second part\n\n"
        "    | a |\n    |---|\n\n1. first\n    ```\n    - code\n    ```\n\nAfter.\n2026. no item\n"
    )


def test_links_lead_to_the_pages_of_the_site():
    text = "[a](docs/methods.md#x) [b](docs/demo.png) [c](https://e.org/a) [d](#here)\n```\n[e](docs/a.md)\n```\n"
    assert site_hooks.relinked(text, "README.md") == (
        "[a](methods.md#x) [b](demo.png) [c](https://e.org/a) [d](index.md#here)\n```\n[e](docs/a.md)\n```\n"
    )
    text = "[a](../src/covgrpo/core/tokens.py#L23) [b](../README.md#install) [c](../studies/main/results.csv)"
    assert site_hooks.relinked(text, "docs/methods.md") == (
        "[a](repository/src/covgrpo/core/tokens.py.md#L-23) [b](index.md#install) "
        "[c](repository/studies/main/results.csv)"
    )
    for path in ("README.md", "docs/how-to/verl.md", "recipes/verl/README.md", "src/covgrpo/core/tokens.py"):
        assert site_hooks.repository_path(site_hooks.site_path(path)) == path


def test_formulas_and_roles_of_docstrings():
    text = "See :class:`a.Task`, ``docs/a.md``.\n\na = b     words\nc = d\n\nArgs:\n    a (`int`, *optional*):\n"
    assert site_docstrings.shown(text) == (
        "See `a.Task`, [a](../a.md).\n\n```text\na = b     words\nc = d\n```\n\nArgs:\n    a:\n"
    )


def test_the_package_index_gets_no_relative_link():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert pypi_readme.RELATIVE.search(readme)
    for source in (None, "https://example.org/owner/name"):
        assert not pypi_readme.RELATIVE.search(pypi_readme.on_the_index(readme, source, "1.0"))
    text = "[log](docs/log.md#x) [docs/a.md](docs/a.md) ![b](docs/b.png) [c](https://e.org) [d](#e)"
    assert pypi_readme.on_the_index(text, None, "1.0") == (
        "log [`docs/log.md`] `docs/a.md` b [`docs/b.png`] [c](https://e.org) [d](#e)"
    )
    assert pypi_readme.on_the_index(text, "https://example.org/o/n/", "1.0") == (
        "[log](https://example.org/o/n/blob/v1.0/docs/log.md#x) "
        "[docs/a.md](https://example.org/o/n/blob/v1.0/docs/a.md) "
        "![b](https://example.org/o/n/raw/v1.0/docs/b.png) [c](https://e.org) [d](#e)"
    )
