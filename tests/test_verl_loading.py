"""How the plug-in is loaded, in a package that imports plug-ins as verl does."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import covgrpo
from covgrpo.verl import weigh_batch

FAKE_VERL = """
import importlib, os
__version__ = {version!r}
for name in filter(None, os.getenv("VERL_USE_EXTERNAL_MODULES", "").split(",")):
    importlib.import_module(name)
if os.getenv("BY_ENTRY_POINT"):
    try:
        importlib.import_module("covgrpo.verl")
    except Exception:
        pass
"""
FAKE_TRAINER = """
class PPOTrainer:
    def __init__(self, config):
        print("built")
    def _compute_advantage(self, batch, metrics): ...
    def _save_checkpoint(self): ...
    def _load_checkpoint(self): ...
def compute_advantage_for_multi_trajectories(data, batch_keys, config=None): ...
class tq:
    def kv_batch_get(keys, partition_id, select_fields): ...
"""


def fake_verl(folder, version="0.9.1", trainer=FAKE_TRAINER):
    package = folder / "verl" / "trainer" / "ppo" / "v1"
    package.mkdir(parents=True)
    for parent in (package, *package.parents[:3]):
        (parent / "__init__.py").touch()
    (folder / "verl" / "__init__.py").write_text(FAKE_VERL.format(version=version))
    (package.parent / "ray_trainer.py").write_text("class RayPPOTrainer:\n    def __init__(self, config): ...\n")
    if trainer:
        (package / "trainer_base.py").write_text(trainer)


def start(folder, program, *arguments, **environment):
    sources = str(Path(covgrpo.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), sources]), **environment}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=env, timeout=120, check=False
    )


BUILD = "import verl; from verl.trainer.ppo.v1.trainer_base import PPOTrainer; PPOTrainer({'algorithm': {}})"
VARIABLE = {"VERL_USE_EXTERNAL_MODULES": "covgrpo.verl"}
ENTRY_POINT = {"BY_ENTRY_POINT": "1"}
CHOICE = "+algorithm.covgrpo.weighting=gaussian"


def test_the_variable_alone_is_enough(tmp_path):
    fake_verl(tmp_path)
    done = start(tmp_path, BUILD, **VARIABLE)
    assert done.stdout.splitlines() == ["built", "covgrpo: weighting=gaussian scope=group in PPOTrainer"], done.stderr


def test_found_by_its_entry_point_it_does_nothing(tmp_path):
    fake_verl(tmp_path)
    done = start(tmp_path, BUILD, **ENTRY_POINT)
    assert (done.stdout, done.stderr) == ("built\n", "")


def test_no_trainer_module_is_imported_for_the_plug_in(tmp_path):
    fake_verl(tmp_path)
    done = start(tmp_path, "import sys, verl; print(any('trainer' in m for m in sys.modules if 'covgrpo' not in m))",
                 **VARIABLE)  # fmt: skip
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    ("verl", "says"),
    [
        ({"version": "0.10.0"}, "covgrpo.verl is tested with verl 0.9.x, and this is verl 0.10.0."),
        ({"trainer": None}, "covgrpo.verl needs verl.trainer.ppo.v1.trainer_base, which this verl does not have"),
    ],
)
def test_an_unknown_verl_is_never_passed_over(tmp_path, verl, says):
    fake_verl(tmp_path, **verl)
    done = start(tmp_path, "import verl", **VARIABLE)
    assert done.returncode == 1
    assert says in done.stderr.splitlines()[-1]
    done = start(tmp_path, "import verl; print('on')", CHOICE, **ENTRY_POINT)
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr.splitlines()[-1]
    done = start(tmp_path, "import verl; print('on')", **ENTRY_POINT)
    assert (done.returncode, done.stdout) == (0, "on\n")
    assert says in done.stderr


def test_looking_for_the_module_does_not_use_up_the_watch(tmp_path):
    fake_verl(tmp_path)
    look = "import importlib.util, verl; importlib.util.find_spec('verl.trainer.ppo.v1.trainer_base'); "
    done = start(tmp_path, look + BUILD, **VARIABLE)
    assert "covgrpo: weighting=gaussian" in done.stdout, done.stderr


def test_the_module_is_otherwise_as_imported(tmp_path):
    fake_verl(tmp_path)
    program = "import verl, inspect, verl.trainer.ppo.v1.trainer_base as m; print(type(m.__loader__).__name__, "
    done = start(tmp_path, program + "type(m.__spec__.loader).__name__, len(inspect.getsource(m)))", **VARIABLE)
    assert done.stdout == f"SourceFileLoader SourceFileLoader {len(FAKE_TRAINER)}\n", done.stderr


def test_the_package_needs_torch_alone():
    probe = "import sys, covgrpo.verl; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120, check=True)
    assert not set(done.stdout.split()) & {"transformers", "trl", "accelerate", "datasets", "verl", "ray"}


def test_the_entry_point_is_declared():
    from importlib.metadata import entry_points

    if not (points := [point for point in entry_points(group="verl.plugins") if point.name == "covgrpo"]):
        pytest.skip("the installed covgrpo is older than its entry point: pip install -e . again")
    assert points[0].value == "covgrpo.verl"
    assert importlib.import_module(points[0].value).weigh_batch is weigh_batch
