"""The options of ``%%kt`` and ``%kt``: parsers, and a `Compute` made of what was given."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import Any, NoReturn

from IPython.core.error import UsageError

import kubetorch_jupyter as kt

__all__ = ["COMPUTE", "Parser", "compute_from", "parse", "split"]

#: Options that describe a `kt.Compute`, and what they are there.
COMPUTE = ("cpus", "memory", "memory_limit", "gpus", "image", "concurrency", "detach")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are IPython's one-line ones, and which never ends the process."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, add_help=False, allow_abbrev=False, exit_on_error=False)
        self.add_argument("-h", "--help", action="store_true", help="show this")

    def error(self, message: str) -> NoReturn:
        """Raise the `UsageError`."""
        raise UsageError(f"{self.prog}: {message}; {self.prog} --help shows what there is")

    def add_compute(self) -> None:
        """Add the options of a `kt.Compute`."""
        self.add_argument("--cpus", metavar="N", help="CPUs to ask for, for example 0.5")
        self.add_argument("--memory", metavar="SIZE", help="memory to ask for, for example 4Gi")
        self.add_argument("--memory-limit", metavar="SIZE", help="end what takes more memory than this")
        self.add_argument("--gpus", metavar="N", help="GPUs to ask for")
        self.add_argument("--image", metavar="IMAGE", help="container image (Kubernetes)")
        self.add_argument("--concurrency", metavar="N", type=int, help="calls that run at once")
        self.add_argument("--detach", action="store_true", default=None, help="outlive this kernel")


def split(line: str, prog: str) -> list[str]:
    """The words of a magic's line.

    Raises
    ------
    UsageError
        When a quotation isn't closed.
    """
    try:
        return shlex.split(line)
    except ValueError as e:
        raise UsageError(f"{prog}: {e}") from None


def parse(parser: Parser, words: Sequence[str]) -> argparse.Namespace | None:
    """The options, or None when help was asked for, which is then shown."""
    if "-h" in words or "--help" in words:
        print(parser.format_help().rstrip())
        return None
    try:
        return parser.parse_args(words)
    except argparse.ArgumentError as e:
        parser.error(str(e))


def compute_from(given: argparse.Namespace, defaults: dict[str, Any]) -> kt.Compute | None:
    """What was asked for in the options, else by the defaults; None when neither says anything.

    Raises
    ------
    UsageError
        When a value makes no sense.
    """
    values = {name: value for name in COMPUTE if (value := getattr(given, name, None)) is not None}
    values = {**{name: value for name, value in defaults.items() if value}, **values}
    if not values:
        return None
    try:
        if (image := values.get("image")) is not None:
            values["image"] = kt.Image(image_id=image)
        return kt.Compute(**values)
    except kt.ConfigError as e:
        raise UsageError(str(e)) from None
