"""README, docs and recipes: prose lines are short, and every relative link leads to a file and to a heading of it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "recipes").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# Their lines may be longer for now. Their links are checked as those of all others.
MAX_COLUMNS = 120

FENCED = re.compile(r"^\s*```.*?^\s*```\s*?$", re.DOTALL | re.MULTILINE)
LINK_TARGET = re.compile(r"\]\(([^()\s]+)\)")
ONE_LINK = re.compile(r"\s*(?:[-*]\s+)?!?\[[^\]]*\]\([^()\s]+\)[.,;:]?\s*")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*$", re.MULTILINE)
REMOTE = re.compile(r"[a-z]+:")


def without_code(text: str) -> str:
    """Return the text with its blocks of code emptied; line numbers stay."""
    return FENCED.sub(lambda block: "\n" * block[0].count("\n"), text)


def long_lines(text: str) -> list[str]:
    """Return ``number: columns`` of each line of prose that is too long; tables and lines of one link are none."""
    lines = enumerate(without_code(text).splitlines(), start=1)
    prose = [(n, line) for n, line in lines if not line.lstrip().startswith("|") and not ONE_LINK.fullmatch(line)]
    return [f"{n}: {len(line)} columns" for n, line in prose if len(line) > MAX_COLUMNS]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings: lower case, no punctuation, dashes for spaces."""
    found: set[str] = set()
    for heading in HEADING.findall(without_code(text)):
        shown = LINK_TARGET.sub("]", heading)  # of a link in a heading, the words
        slug = base = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        times = 0
        while slug in found:
            times += 1
            slug = f"{base}-{times}"
        found.add(slug)
    return found


def dead_links(text: str, page: Path) -> list[str]:
    """Return the relative links of a page that lead to no file, no heading of a page, or no line of a source file."""
    dead = []
    for target in LINK_TARGET.findall(without_code(text)):
        if REMOTE.match(target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists():
            dead.append(f"{target}: no such file")
        elif anchor and not has_anchor(file, anchor, text if file == page else None):
            dead.append(f"{target}: no such heading or line")
    return dead


def has_anchor(file: Path, anchor: str, text: str | None = None) -> bool:
    """Whether a file has this heading or, where it is no page, this line (``L12``)."""
    text = file.read_text(encoding="utf-8") if text is None else text
    if file.suffix == ".md":
        return anchor in anchors(text)
    line = re.fullmatch(r"L(\d+)", anchor)
    return line is not None and 1 <= int(line[1]) <= len(text.splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_a_line_of_prose_has_at_most_120_columns(name):
    assert long_lines((ROOT / name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_relative_link_leads_to_a_file_and_a_heading(name):
    assert dead_links((ROOT / name).read_text(encoding="utf-8"), ROOT / name) == []


def test_the_pages_and_their_links_are_found():
    assert set(NAMES) > {"README.md", "docs/log.md", "docs/results.md", "recipes/verl/README.md"}
    links = [link for page in PAGES for link in LINK_TARGET.findall(without_code(page.read_text(encoding="utf-8")))]
    assert len([link for link in links if not REMOTE.match(link)]) > 100


def test_long_prose_is_noticed_and_tables_code_and_single_links_are_not():
    words, link = "word " * 25, f"[a link](https://example.org/{'x' * 120})"
    spared = f"```\n{words}\n```\n| {words} |\n{link}\n- {link}.\n![{words}](a.png)\n"
    assert long_lines(spared) == []
    assert long_lines(f"{spared}{words}\n") == ["8: 125 columns"]
    assert long_lines(f"see {link}\n- {words}\n    {words}\n") == [
        f"1: {len(link) + 4} columns",
        "2: 127 columns",
        "3: 129 columns",
    ]
    assert long_lines(f"{'x' * 120}\n") == []
    assert long_lines(f"{'x' * 121}\n") == ["1: 121 columns"]


def test_a_dead_link_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# One: `two`, three\n## Twice\n## Twice\n```\n# no heading\n```\n")
    (tmp_path / "code.py").write_text("a = 1\nb = 2\n")
    page.write_text("")
    alive = "# Here\n[a](other.md) [b](#here) [c](other.md#one-two-three) [d](other.md#twice-1) [e](code.py#L2)\n"
    assert dead_links(alive + "[f](https://example.org/none.md#x)\n```\n[g](none.md)\n```\n", page) == []
    for target in ("none.md", "#there", "other.md#two", "other.md#twice-2", "other.md#no-heading", "code.py#L3"):
        assert [line.partition(": ")[0] for line in dead_links(f"{alive}[x]({target})\n", page)] == [target]
