"""What a service is deployed from: the packed callable with the moment's directory, path and environment."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from dataclasses import dataclass, field, replace

from .compute import Compute
from .errors import ConfigError
from .shipping import Bundle

__all__ = ["Code", "take_code"]

#: What differs from kernel to kernel, or with every cell, and says nothing about the user's code.
_VOLATILE = re.compile(
    r"(JPY_|KT_|PYTEST_|IPY|XDG_|DBUS_|SSH_|VSCODE_|PYDEVD_|TERM|COLUMNS$|LINES$|PWD$|OLDPWD$|SHLVL$|_$|PS1$|PAGER$|GIT_PAGER$"
    r"|CLICOLOR|FORCE_COLOR$|MPLBACKEND$|LS_COLORS$|PROMPT_COMMAND$|HISTFILE|WINDOWID$|DISPLAY$)"
)
#: How much environment a pod takes, as JSON: it is part of the LOAD frame's meta, beside the interface.
_ENV_BYTES = 32 << 10


@dataclass
class Code:
    """What a service was deployed from, so that it can be deployed again."""

    bundle: Bundle
    compute: Compute
    #: Where it runs; None: the pod's own working directory and path.
    cwd: str | None
    sys_path: list[str] | None
    env: dict[str, str]
    #: The last fingerprints, and of which bundle: each step of a deploy asks for them, and that may be packed anew.
    _known: tuple[Bundle, tuple[str, str]] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def env_vars(self) -> dict[str, str]:
        """What the user asked for, without what the client's own environment has."""
        image = self.compute.image
        return {**(image.env(os.environ) if image is not None else {}), **self.compute.env()}

    def on(self, compute: Compute, *, here: bool) -> Code:
        """The same for this `Compute`; unless `here`, for pods with a place of their own.

        Those get nothing of this process's directory, path and environment.

        Raises
        ------
        ConfigError
            When the environment is larger than the 32 KiB that a pod takes.
        """
        code = replace(self, compute=compute)
        if not here:
            # What the image sets is set there, where variables that it refers to have their values.
            code = replace(code, cwd=compute.working_dir, sys_path=None, env=dict(compute.env()))
        elif self.bundle.steps is not None and self.bundle.steps.only_env:
            code = replace(code, bundle=replace(self.bundle, steps=None))
        _check_size(code.env)
        return code

    def fingerprints(self) -> tuple[str, str]:
        """``(version, worker)``: of everything that was sent, and of what only a new worker process can take on."""
        if self._known is None or self._known[0] is not self.bundle:
            self._known = self.bundle, self._make_fingerprints()
        return self._known[1]

    def _make_fingerprints(self) -> tuple[str, str]:
        lasting = {k: v for k, v in self.env.items() if not _VOLATILE.match(k)}
        steps = [self.bundle.steps.digest] if self.bundle.steps is not None else []
        python = [sys.version_info[:3], sys.executable] if self.sys_path is not None else []
        place = json.dumps([self.cwd, self.sys_path, sorted(lasting.items()), *python, *steps])
        worker = hashlib.blake2b(f"{self.bundle.worker}\n{place}".encode(), digest_size=16).hexdigest()
        # What a LOAD sets in a pod that lives: without them here, a deploy that changes nothing else would do nothing.
        compute = self.compute
        limits = (compute.concurrency, compute.memory_limit_bytes, compute.ttl_seconds, compute.allowed_serialization)
        version = hashlib.blake2b(f"{self.bundle.version}\n{worker}\n{limits}".encode(), digest_size=16).hexdigest()
        return version, worker


def take_code(bundle: Bundle, compute: Compute, cwd: str) -> Code:
    """The code with this moment's directory, path and environment."""
    env = dict(os.environ)
    code = Code(bundle, compute, compute.working_dir or cwd, [p or cwd for p in sys.path], env)
    env.update(code.env_vars)
    return code


def _check_size(env: dict[str, str]) -> None:
    size = len(json.dumps(env))
    if size > _ENV_BYTES:
        sizes = {name: len(json.dumps({name: value})) for name, value in env.items()}
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        named = ", ".join(f"{name} ({sizes[name] / 1024:.1f} KiB)" for name in largest)
        raise ConfigError(
            f"the environment has {size / 1024:.0f} KiB, and a pod takes {_ENV_BYTES >> 10}; "
            f"the largest are {named}. Take out of os.environ what isn't needed, or "
            "send it as an argument or a captured value"
        )
