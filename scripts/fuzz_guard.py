"""What an input of scripts/fuzz.py must not do: open a socket, start a process, write outside of its folder."""

import os
import sys
from typing import Any, NoReturn

_WRITES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
OUTSIDE = {"socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"}


class Guard:
    """Forbids what no command may do while it is on, and remembers what was tried; an audit hook stays for good."""

    def __init__(self) -> None:
        self.on, self.folder, self.tried = False, "", list[str]()
        sys.addaudithook(self._event)

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in OUTSIDE:
            self._forbid(f"{event} {str(arguments)[:100]}", OSError("no network and no processes here"))
        if event == "open" and isinstance(arguments[0], str | bytes) and _writes(*arguments[1:]):
            self._check(event, arguments[0])
        elif event in _WRITES:
            for path in arguments:
                if isinstance(path, str | bytes):
                    self._check(event, path)

    def _check(self, event: str, path: str | bytes) -> None:
        where = os.path.realpath(os.fsdecode(path))
        if not where.startswith((self.folder, "/dev/null")):
            self._forbid(f"{event} {where[:100]}", PermissionError(13, "Permission denied", os.fsdecode(path)))

    def _forbid(self, what: str, error: Exception) -> NoReturn:
        self.tried.append(what)
        raise error


def _writes(mode: Any, flags: Any) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if isinstance(flags, int) else "r" not in str(mode)
