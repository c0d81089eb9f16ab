"""Code in README, docs and recipes: the parser takes the commands, Python imports what is there, data parses."""

import ast
import json
import re
import shlex
import textwrap
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from covgrpo.cli import command_line
from covgrpo.cli.flags import given_options
from covgrpo.runs.options import TrainOptions, options_from_dict
from covgrpo.yaml_text import read_yaml

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *(page for name in ("docs", "examples", "recipes") for page in sorted((ROOT / name).rglob("*.md"))),
]
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
COMMAND = re.compile(r"(?:^|-m )covgrpo ([a-z]+ ?.*)")
SHELL = ("", "sh", "bash", "console")


def blocks(*languages: str) -> list:
    """The blocks of code in these languages, as parameters of a test."""
    found = []
    for page in PAGES:
        for place, (language, code) in enumerate(FENCED.findall(page.read_text(encoding="utf-8")), start=1):
            if language in languages:
                name = page.relative_to(ROOT)
                found.append(pytest.param(textwrap.dedent(code), id=f"{name}, block {place}"))
    return found


def commands(page: Path) -> list[str]:
    """Lines of blocks, and inline code with flags and values; what is cut short by dots is none."""
    text = page.read_text(encoding="utf-8")
    shell = [textwrap.dedent(code) for language, code in FENCED.findall(text) if language in SHELL]
    lines = [line for block in shell for line in block.replace("\\\n", " ").splitlines()]
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


@pytest.mark.parametrize("code", blocks("python", "py"))
def test_documented_python_compiles_and_imports_what_covgrpo_has(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "covgrpo":
            module = import_module(node.module)
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == "covgrpo":
                    import_module(name.name)
        # covgrpo.name, where the package itself was imported
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "covgrpo":
            assert hasattr(import_module("covgrpo"), node.attr)


@pytest.mark.parametrize("code", blocks("json", "jsonl"))
def test_documented_json_parses(code):
    assert [json.loads(line) for line in code.splitlines()]


@pytest.mark.parametrize("code", blocks("yaml"))
def test_documented_yaml_parses(code):
    assert isinstance(yaml.safe_load(code), dict)


@pytest.mark.parametrize("code", blocks(*SHELL))
def test_documented_scripts_and_targets_of_make_are_there(code):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name in re.findall(r"^make ([\w-]+)", code, re.MULTILINE) if name not in targets] == []
    assert [name for name in re.findall(r"\bpython (\w\S*\.py)\b", code) if not (ROOT / name).is_file()] == []
    files = re.findall(r"(?<!\S)(?:recipes|studies)/\S+\.(?:yaml|sh)\b", code)
    assert [name for name in files if not (ROOT / name).is_file()] == []


def test_every_language_of_a_block_is_known():
    """So that no block escapes the tests above by its name."""
    used = {language for page in PAGES for language, _ in FENCED.findall(page.read_text(encoding="utf-8"))}
    assert used <= {*SHELL, "python", "yaml", "json"}
    assert len(blocks("python")) > 15 and len(blocks("json")) > 0 and len(blocks("yaml")) > 0
