"""What a release needs beside the code: one version, a changelog, a citation, workflows that call what there is."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from test_docs import dead_links, long_lines

import covgrpo

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGET = re.compile(r"^([a-z][\w-]*):", re.MULTILINE)


def test_the_version_has_one_place():
    assert version("covgrpo") == covgrpo.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", covgrpo.__version__)
    assert covgrpo.__version__ not in (ROOT / "pyproject.toml").read_text()


def test_changelog_and_citation_are_of_this_version():
    headings = re.findall(r"^## \[(.+?)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    newest = headings[0][0] if headings[0][0] != "Unreleased" else headings[1][0]
    assert newest == covgrpo.__version__
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d|not yet released", date) for _, date in headings)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == covgrpo.__version__


def test_the_citation_has_what_the_format_asks_for_and_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    for entry in (citation, *citation["references"]):
        assert entry["title"] and entry["type"]
        assert all("name" in author or "family-names" in author for author in entry["authors"])
    assert citation["message"] and citation["license"] == "Apache-2.0"
    paper = citation["references"][0]
    assert paper["identifiers"][0]["value"] == "arXiv:2605.11538"
    assert {author["family-names"] for author in paper["authors"]} == {"Wang", "Liu", "Zhou", "Chen"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_targets_of_the_makefile_and_nothing_else(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["name"] == path.stem
    assert workflow[True]  # YAML 1.1 reads the key `on` so
    targets = set(TARGET.findall((ROOT / "Makefile").read_text()))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(("uses" in step) != ("run" in step) for step in steps)
    for command in (step["run"] for step in steps if "run" in step):
        called = re.fullmatch(r'make ([\w-]+)( [A-Z]+="\$[A-Z_]+")?', command)
        assert called, command
        assert called[1] in targets, command
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert set(job.get("needs", "").split()) <= workflow["jobs"].keys()


def test_the_workflows_are_found_and_only_publishing_may_ask_for_an_identity():
    assert [path.stem for path in WORKFLOWS] == ["docs", "release", "tests"]
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}
        asking = {name for name, job in workflow["jobs"].items() if "id-token" in job.get("permissions", {})}
        assert asking <= {"publish", "deploy"}
        assert "secrets." not in path.read_text()


@pytest.mark.parametrize("name", ["CHANGELOG.md", "CONTRIBUTING.md", "UPGRADING.md"])
def test_a_page_of_the_root_has_short_lines_and_links_that_lead_somewhere(name):
    text = (ROOT / name).read_text()
    assert long_lines(text) == []
    assert dead_links(text, ROOT / name) == []
    called = re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE)
    assert set(called) <= set(TARGET.findall((ROOT / "Makefile").read_text()))
    scripts = re.findall(r"python (scripts/\S+\.py)", text)
    assert all((ROOT / script).is_file() for script in scripts)


def test_the_requirements_of_a_first_run_are_no_extras():
    """`pip install covgrpo` is enough for `covgrpo demo`; torch is left to --no-deps."""
    text = (ROOT / "pyproject.toml").read_text()
    required = text.partition("\ndependencies = [")[2].partition("]")[0]
    for name in ("torch", "numpy", "transformers", "trl", "gguf", "reasoning-gym", "math-verify", "pyyaml", "rich"):
        assert f'"{name}>=' in required
