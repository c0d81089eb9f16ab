"""Getting into verl's processes: nothing heavy is imported, and no failure is swallowed.

verl imports its plug-ins at the end of its own ``__init__``, in every process. Only the driver imports the modules of
the trainers, so they are watched for instead of being imported here.

Errors of a module named in ``VERL_USE_EXTERNAL_MODULES`` stop verl. Errors of a plug-in that verl finds by its entry
point are logged at DEBUG and dropped; such a failure is therefore raised as ``SystemExit`` where the command line
chooses a weighting, and is a warning elsewhere.
"""

import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from covgrpo.engines.verl.config_section import SECTION
from covgrpo.engines.verl.trainers import SEAMS, missing, watch
from covgrpo.errors import UserError

TESTED_VERSIONS = "0.9."
_VARIABLE = "VERL_USE_EXTERNAL_MODULES"
_PLUG_IN = "covgrpo.verl"  # the package that users name there, and of the entry point


def load() -> None:
    """Watch for verl's trainers; called once, when the plug-in is imported.

    Raises:
        UserError: named in ``VERL_USE_EXTERNAL_MODULES``, and verl is not a tested version or lacks a module.
        SystemExit: the same, found by its entry point, and the command line chooses a weighting.

    """
    by_variable = named_by_variable()
    try:
        if "verl" in sys.modules:
            check_verl(sys.modules["verl"])
        for name in SEAMS:
            after_import(name, lambda module: watch(module, by_variable))
    except UserError as error:
        if by_variable:
            raise
        if any(f"{SECTION}." in argument for argument in sys.argv):
            raise SystemExit(str(error)) from error
        logging.getLogger(__name__).warning("%s The plug-in does nothing.", error)


def named_by_variable() -> bool:
    """Whether ``VERL_USE_EXTERNAL_MODULES`` names the plug-in."""
    return _PLUG_IN in [name.strip() for name in os.environ.get(_VARIABLE, "").split(",")]


def check_verl(verl: ModuleType) -> None:
    """Check version and modules of the installed verl.

    Raises:
        UserError: not a tested version, or a module is missing.

    """
    version = str(getattr(verl, "__version__", "without a version"))
    if not version.startswith(TESTED_VERSIONS):
        raise UserError(f"covgrpo.verl is tested with verl {TESTED_VERSIONS}x, and this is verl {version}.")
    for name in SEAMS:
        path = Path(verl.__path__[0], *name.split(".")[1:])
        if not path.with_suffix(".py").is_file() and not path.is_dir():
            raise UserError(missing(name))


def after_import(name: str, action: Callable[[ModuleType], None]) -> None:
    """Call ``action`` with the module ``name``: now if it is imported already, else once it has been."""
    if name in sys.modules:
        action(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Watcher(name, action))


class _Watcher(MetaPathFinder):
    """Finds one module as everybody else would, and acts after it has been executed."""

    def __init__(self, name: str, action: Callable[[ModuleType], None]):
        self.name, self.action = name, action
        self._searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenAct(spec.loader, self)
        return spec


class _ThenAct(Loader):
    """A loader that acts on the module once it is executed."""

    def __init__(self, loader: Loader, watcher: _Watcher):
        self.loader, self.watcher = loader, watcher

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        # What asks a module for its source (tracebacks, inspect) finds verl's own loader again.
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        sys.meta_path.remove(self.watcher)
        self.watcher.action(module)
