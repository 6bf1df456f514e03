"""What the system says of the memory of this process's container: its limit, and how often it had to kill for it."""

from __future__ import annotations

import os

__all__ = ["MemoryGroup"]


class MemoryGroup:
    """The control group (version 1 or 2) that this process is in.

    Parameters
    ----------
    root, own
        Where the groups are, and the file that says which is ours; for tests.

    Examples
    --------
    >>> MemoryGroup("/nonexistent", "/nonexistent").kills()
    0
    """

    def __init__(self, root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> None:
        self._dirs: list[str] = []
        try:
            with open(own, encoding="utf-8", errors="surrogateescape") as f:
                lines = [line.rstrip("\n").split(":", 2) for line in f if line.count(":") >= 2]
        except OSError:
            lines = []
        # In a container the group's own directory is mounted at the root; outside of one, all groups are.
        places = [(root, path) for number, _, path in lines if number == "0"]
        places += [(f"{root}/memory", path) for _, kinds, path in lines if "memory" in kinds.split(",")]
        for base, path in places:
            self._dirs += [os.path.join(base, path.lstrip("/")), base]

    def _read(self, name: str) -> str | None:
        for path in self._dirs:
            try:
                with open(os.path.join(path, name), encoding="ascii") as f:
                    return f.read()
            except (OSError, UnicodeDecodeError):
                continue  # of the other version, or another mount
        return None

    def kills(self) -> int:
        """How many processes of the group the system has killed because its memory ran out."""
        text = self._read("memory.events") or self._read("memory.oom_control") or ""
        for line in text.splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill" and value.strip().isdecimal():
                return int(value)
        return 0

    def limit(self) -> int | None:
        """Bytes that the group may hold; None: it has no limit."""
        text = (self._read("memory.max") or self._read("memory.limit_in_bytes") or "").strip()
        # "max" in version 2; in version 1 a number near 2^63.
        return int(text) if text.isdecimal() and int(text) < 1 << 62 else None
