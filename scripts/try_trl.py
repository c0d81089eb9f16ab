"""Whether a version of TRL fits: its seams first, then the exactness matrix, in an environment of its own.

    python scripts/try_trl.py 1.16.0                        # as constraints.txt has it: fits
    python scripts/try_trl.py 1.17.0                        # a new one
    python scripts/try_trl.py 1.16.0 transformers==5.24.0   # with another version of something else
    python scripts/try_trl.py 1.17.0 --seams-only           # seconds instead of minutes

The environment shares all packages of the one that runs this script, and has what is named here, and what that needs,
in front of them. torch stays as it is. Ends with 0 where everything fits, 1 where a test fails, 2 where the version
cannot be had. UPGRADING.md says what to do then.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEAMS = ["tests/test_seams.py"]
# Of the methods against stock TRL and an independent reference, and of the matrix of splits, shuffles and processes.
EXACT = ["tests/test_trl_identity.py", "tests/test_exactness.py"]
# Says that the version is the one in the range; another one is tried here.
LEFT_OUT = "test_version_range"
BROKEN = re.compile(r"^(?:FAILED|ERROR) (\S+)(?: - (.*))?$", re.MULTILINE)
CAUSE = re.compile(r"^E +(\w*(?:Error|Exception)\b.*)$", re.MULTILINE)


def make_environment(folder: Path, requirements: list[str]) -> Path:
    """An environment with the packages of this one, and the requirements in front; its Python.

    Raises:
        RuntimeError: pip cannot install them; its last line.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (site / "shared.pth").write_text("".join(f"{path}\n" for path in shared))
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write(f"torch=={version('torch')}\n")
        constraints.flush()
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "-c", constraints.name]
        done = subprocess.run([*pip, *requirements], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return python


def broken(python: Path, tests: list[str]) -> list[str]:
    """The tests that fail there, with why in a few words; empty where all pass."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"}
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--deselect", f"{SEAMS[0]}::{LEFT_OUT}"]
    done = subprocess.run([*command, *tests], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        print(done.stdout.strip().splitlines()[-1], flush=True)
        return []
    causes = CAUSE.findall(done.stdout)
    found = [f"{name}: {why or (causes or ['see above'])[0]}" for name, why in BROKEN.findall(done.stdout)]
    return found or [f"pytest ended with {done.returncode}: {(done.stderr or done.stdout).strip().splitlines()[-1]}"]


def main() -> int:
    """Try one version; print the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="of TRL on the package index")
    parser.add_argument("requirements", nargs="*", help="other packages, as pip takes them")
    parser.add_argument("--seams-only", action="store_true", help="leave the exactness matrix out")
    args = parser.parse_args()
    wanted = [f"trl=={args.version}", *args.requirements]
    with tempfile.TemporaryDirectory() as folder:
        try:
            python = make_environment(Path(folder, "env"), wanted)
        except RuntimeError as error:
            print(f"cannot be tried: {error}")
            return 2
        listing = "from importlib.metadata import version as v; print(*(f'{n} {v(n)}' for n in ('trl', 'transformers'"
        subprocess.run([str(python), "-c", f"{listing}, 'accelerate', 'datasets', 'torch')), sep=', ')"], check=True)
        for what, tests in (("seams", SEAMS), ("exactness matrix", EXACT))[: 1 if args.seams_only else 2]:
            print(f"{what}: {', '.join(tests)}", flush=True)
            if found := broken(python, tests):
                print("\n".join(f"  {line}" for line in found))
                print(f"verdict: {' '.join(wanted)} does not fit: {len(found)} of the tests of its {what} fail")
                return 1
    print(f"verdict: {' '.join(wanted)} fits{' by its seams' if args.seams_only else ''}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
