"""What may import what: a lower layer never a higher one, and no circle, also where a function does the importing."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import covgrpo

ROOT = Path(covgrpo.__file__).parent

# From low to high. A folder or module of the package imports those of lower rows and itself; those of one row do not
# know each other. "" is the package's root: its version, and names that load on first use.
LAYERS = (
    {"errors": "the one exception that a user is meant to read"},
    {"packages": "what is said where one is missing"},
    {"": "version; the core's names on first use"},
    {
        "core": "the method as pure tensors",
        "files": "JSON lines, files written whole",
        "yaml_text": "YAML that means one thing",
        "suggest": "what a mistyped name was meant to be",
        "hardware": "what the machine can do",
        "processes": "what the processes of a run tell each other",
        "cpu_defaults": "threads and memory of a process",
    },
    {
        "metrics": "what a step did to which tokens",
        "tasks": "prompts and verifiers; they know no model",
        "verify": "verifiers in processes; told a verifier by its import path",
        "models": "from a name to a model; it knows no task",
        "report": "reads a run's folder as anybody could: no other part of the package made it",
    },
    {"forward": "forward passes", "rewards": "tasks and verify as TRL's reward functions"},
    {"rollouts": "sampling, by forward's passes"},
    {
        "evaluation": "draws by rollouts, scores by verify; it knows no trainer",
        "engines": "the weights in other trainers; what drivers share lies here too",
    },
    {"trl": "TRL's trainer; takes EntropyHold from engines", "verl": "the plug-in's name for engines/verl"},
    {"runs": "a run from its options to its folder"},
    {
        "callbacks": "runs' recorder for TRL's own trainer",
        "studies": "many runs; names of methods from trl, pages from report",
        "bench": "trl's trainer beside the stock one, by the options of runs",
    },
    {"cli": "reads flags, calls, prints"},
    {"__main__": "python -m covgrpo"},
)
# (module that imports, module that it imports) -> why it may, against LAYERS.
EXCEPTIONS: dict[tuple[str, str], str] = {}


def sources(root: Path = ROOT) -> dict[str, str]:
    """Module -> its source, of every module of the package; a package's own by the package's name."""
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def imported(source: str, types_too: bool = False) -> Iterator[tuple[str, str | None]]:
    """(module, name from it or None) for each import, wherever it stands but under ``if TYPE_CHECKING``."""
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.If) and not types_too and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting.extend(node.orelse)
        else:
            waiting.extend(ast.iter_child_nodes(node))


def graph(modules: dict[str, str]) -> dict[str, set[str]]:
    """Module -> those of ``modules`` that it imports."""
    found: dict[str, set[str]] = {}
    for module, source in modules.items():
        pairs = list(imported(source))
        inner = {f"{name}.{attribute}" for name, attribute in pairs} & modules.keys()
        # a package of which nothing but modules is taken has no code of its own in the import
        whole = {name for name, attribute in pairs if f"{name}.{attribute}" not in modules} & modules.keys()
        found[module] = inner | whole
    return found


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules each of which imports the next, the last the first; empty where there is no circle."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


def part(module: str) -> str:
    """The folder or module of the package that holds ``module``, as in ``LAYERS``."""
    return [*module.split("."), ""][1]


def upward(imports: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports of another part that is not in a lower row."""
    row = {name: place for place, names in enumerate(LAYERS) for name in names}
    return [
        (module, other)
        for module, others in sorted(imports.items())
        for other in sorted(others)
        if part(module) != part(other) and row[part(module)] <= row[part(other)]
    ]


def strangers(modules: dict[str, str], folder: str, known: set[str]) -> set[tuple[str, str]]:
    """(module, import) of what the folder imports beside the standard library and ``known``."""
    allowed = known | {folder}
    return {
        (module, name)
        for module, source in modules.items()
        if f"{module}.".startswith(f"{folder}.")
        for name, _ in imported(source, types_too=True)
        if name.partition(".")[0] not in sys.stdlib_module_names
        and not any(f"{name}.".startswith(f"{other}.") for other in allowed)
    }


def test_every_part_of_the_package_has_its_layer():
    named = [name for names in LAYERS for name in names]
    assert len(named) == len(set(named))
    assert {part(module) for module in sources()} == set(named)


def test_no_module_imports_itself_in_a_circle():
    assert circle(graph(sources())) == []


def test_no_layer_imports_a_higher_one():
    found = upward(graph(sources()))
    assert [pair for pair in found if pair not in EXCEPTIONS] == []
    assert set(EXCEPTIONS) <= set(found), "an exception that is no longer needed"


def test_core_stands_on_torch_and_metrics_on_core():
    modules = sources()
    assert strangers(modules, "covgrpo.core", {"torch"}) == set()
    assert strangers(modules, "covgrpo.metrics", {"torch", "covgrpo.core"}) == set()


# The checks themselves


def test_a_circle_is_found_also_through_a_function():
    modules = {
        "covgrpo.core": "from covgrpo.core.a import x",
        "covgrpo.core.a": "import torch\nfrom covgrpo.core import b",
        "covgrpo.core.b": "def late():\n    from covgrpo.core.c import y\n    return y",
        "covgrpo.core.c": "class C:\n    def late(self):\n        import covgrpo.core.a",
    }
    assert graph(modules)["covgrpo.core.a"] == {"covgrpo.core.b"}
    found = circle(graph(modules))
    assert set(found) == {"covgrpo.core.a", "covgrpo.core.b", "covgrpo.core.c"}
    assert all(other in graph(modules)[module] for module, other in pairwise(found))
    modules["covgrpo.core.c"] = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import covgrpo.core.a"
    assert circle(graph(modules)) == []
    modules["covgrpo.core.c"] += "\nelse:\n    import covgrpo.core.b"
    assert set(circle(graph(modules))) == {"covgrpo.core.b", "covgrpo.core.c"}


def test_a_module_that_asks_its_own_package_is_a_circle():
    modules = {"covgrpo.core": "from covgrpo.core.a import x", "covgrpo.core.a": "from covgrpo.core import y"}
    assert set(circle(graph(modules))) == set(modules)
    assert circle({"covgrpo.core.a": {"covgrpo.core.a"}}) == ["covgrpo.core.a", "covgrpo.core.a"]


def test_an_upward_import_is_found():
    modules = {
        "covgrpo.core": "def late():\n    from covgrpo.trl.weighting import weigh\n    return weigh",
        "covgrpo.trl": "import covgrpo.core",
        "covgrpo.trl.weighting": "from covgrpo.trl import config\nfrom covgrpo import core, verl, __version__",
        "covgrpo.trl.config": "",
        "covgrpo.verl": "",
        "covgrpo": "",
    }
    assert upward(graph(modules)) == [
        ("covgrpo.core", "covgrpo.trl.weighting"),
        ("covgrpo.trl.weighting", "covgrpo.verl"),  # of its own row
    ]


def test_a_stranger_is_found():
    modules = {
        "covgrpo.core": "import torch.nn.functional as F\nimport math\nfrom covgrpo.core import a",
        "covgrpo.core.a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from covgrpo.corelike import b",
        "covgrpo.corelike": "import numpy",
    }
    assert strangers(modules, "covgrpo.core", {"torch"}) == {("covgrpo.core.a", "covgrpo.corelike")}
    assert strangers(modules, "covgrpo.corelike", set()) == {("covgrpo.corelike", "numpy")}
