"""Every ``covgrpo ...`` command line in README and docs is one that the command line takes."""

import re
import shlex
from pathlib import Path

import pytest

from covgrpo.cli import command_line
from covgrpo.cli.flags import given_options
from covgrpo.runs.options import TrainOptions, options_from_dict
from covgrpo.yaml_text import read_yaml

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```.*?\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
COMMAND = re.compile(r"(?:^|-m )covgrpo ([a-z]+ ?.*)")


def commands(page: Path) -> list[str]:
    """Lines of blocks, and inline code with flags and values; what is cut short by dots is none."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in FENCED.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    inline = [" ".join(code.split()) for code in INLINE.findall(FENCED.sub("", text))]
    found = [match[1] for line in lines if (match := COMMAND.search(line))]
    found += [match[1] for code in inline if (match := COMMAND.search(code)) and re.search(r" --\S+ \S", code)]
    return [line for line in found if "..." not in line.partition(" #")[0]]


ALL = [pytest.param(line, id=f"{page.name}: {line[:60]}") for page in PAGES for line in commands(page)]


@pytest.mark.parametrize("line", ALL)
def test_a_documented_command_is_one_that_the_parser_takes(line):
    args = command_line().parse(shlex.split(line, comments=True))
    if args.command == "train":
        given = given_options(args, TrainOptions)
        options_from_dict({**(read_yaml(str(ROOT / args.config)) if args.config else {}), **given}, line)


def test_the_commands_are_found():
    assert len(ALL) > 25
    assert {line.values[0].split()[0] for line in ALL} >= {"train", "eval", "compare", "table", "report", "bench"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_an_option_of_trl_has_its_own_flag(page):
    """Wherever it is written, also in comments: `--trl a=1 --trl b=2`."""
    assert re.findall(r"--trl \S+=\S+ +\w+=\S+", page.read_text(encoding="utf-8")) == []
