"""Print the first of NAME, NAME-2, NAME-3, ... that does not exist: each `make demo` keeps its own run folder."""

import itertools
import sys
from pathlib import Path

name = sys.argv[1]
print(next(p for i in itertools.count(1) if not Path(p := name if i == 1 else f"{name}-{i}").exists()))
