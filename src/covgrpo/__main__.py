"""``python -m covgrpo`` is ``covgrpo``."""

from covgrpo.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
