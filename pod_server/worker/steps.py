"""The steps of an image: run in the worker's surroundings before its code is loaded, and what has been done not again.

The client sends a *plan*: the steps in order, each with a digest of itself and of all before it. Commands run in the
*working folder*; what they install goes into layers (`layers`), which end up on the worker's ``sys.path`` and ``PATH``.
What is done is written down in the service's own folder, so that another worker of this pod does only what is left.
``docs/images.md`` tells users the same.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import site
import sys
import sysconfig
import time
import zipfile
from collections.abc import Sequence
from typing import Any

from ..processes import start_of, status_text
from ..variables import expand
from .calls import CallError
from .commands import Ended, run_command
from .layers import Layer, Layers
from .reports import Report, Silent

__all__ = ["POD_HOME", "Steps"]

Buffer = bytes | bytearray | memoryview

#: Where a pod of a cluster may write; pods of a machine use the service's directory.
POD_HOME = "/kubetorch/home"
#: Lines of a step's output that are part of its error, and their characters.
_LINES, _CHARS = 15, 2500
#: Where steps run and relative copies go, for the user's own code.
_VARIABLE = "KT_STEPS_DIR"
#: Says where steps of a service on this machine have their place.
_ROOT = "KT_STEPS_ROOT"
_INSTALLERS = re.compile(r"\b(apt-get|apt|apk|yum|dnf|microdnf|zypper)\b")
_NOT_ALLOWED = re.compile(
    r"permission denied|read-only file system|operation not permitted|are you root", re.IGNORECASE
)
#: A requirement without options: a name, and what may follow it.
_PLAIN = re.compile(r"[A-Za-z0-9][\w.-]*\s*(\[[^\]]*\])?\s*($|[<>=!~;(@])")
_OPTION = re.compile(r"(^|\s)-{1,2}[A-Za-z]")
#: Settings of pip that would take what it installs somewhere else.
_PIP_PLACES = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "PYTHONHOME", "__PYVENV_LAUNCHER__")
#: What this process needs as it is.
_KEEP = frozenset(("cloudpickle", "pod_server"))


def requirement(text: str) -> list[str]:
    """The arguments of pip for one item of ``pip_install``.

    Examples
    --------
    >>> requirement("numpy >=2; python_version < '4'"), requirement("--pre torch")
    (["numpy >=2; python_version < '4'"], ['--pre', 'torch'])
    """
    if _PLAIN.match(text) and not _OPTION.search(text):
        return [text]
    return shlex.split(text)


class Steps:
    """The steps of one service, as one worker sees them.

    Parameters
    ----------
    directory
        The service directory.
    home
        Where a pod of a cluster may write.
    """

    def __init__(self, directory: str, home: str = POD_HOME) -> None:
        self._directory = directory
        self._home = home
        self._root = ""
        self._work = ""
        self._local = self._in_cluster = False
        self._layers: Layers | None = None
        self._stack: list[Layer] = []
        self._env: dict[str, str] = {}
        self._paths: list[str] = []
        self._done: set[str] = set()
        self._has_pip = False
        self._applied: str | None = None

    # -- all steps ---------------------------------------------------------------------------------------------------

    def run(self, buffers: Sequence[Buffer], report: Report) -> None:
        """Run what is to be run, and have this process see what it gave.

        Parameters
        ----------
        buffers
            The plan, and the files that come with it, in the order of its ``sent``.
        report
            Gets the output.

        Raises
        ------
        CallError
            When a step fails. Those before it are done, and won't be run again.
        """
        plan = json.loads(bytes(buffers[0]))
        if self._applied == plan["digest"]:
            return
        self._local = bool(plan.get("local"))
        try:
            self._open(plan, buffers[1:])
        except OSError as e:
            raise CallError("StartupError", f"the image steps have no place to run in: {e}") from e
        shared, begun = True, False
        for step in plan["steps"]:
            kind = step["kind"]
            shared = shared and (kind == "env" or (kind == "pip" and _PLAIN.match(step["text"]) is not None))
            shared = shared and not step.get("force")
            if kind == "env":
                self._set(step["env"], plan.get("keep") or ())
                continue
            if self._is_done(step, shared):
                continue
            begun = True
            report.begin(step["shown"])
            report.notice(f"kubetorch: {step['shown']}\n")
            try:
                self._one(step, plan, shared, report)
            except (OSError, zipfile.BadZipFile, ValueError) as e:
                raise self._failed(step, f"failed: {e}", None, str(e)) from e
            self._write_down(step)
        self._apply()
        self._applied = plan["digest"]
        self._tidy(plan)
        if begun:
            report.end()

    def _open(self, plan: dict[str, Any], files: Sequence[Buffer]) -> None:
        self._in_cluster = not self._local and os.access(self._home, os.W_OK)
        # Of a service on this machine it goes with the pod, but is on a disk, which the directory needn't be.
        given = _writable(os.environ.get(_ROOT) or "") if self._local else None
        self._root = given or os.path.realpath(
            os.path.join(self._home if self._in_cluster else self._directory, "steps")
        )
        os.makedirs(os.path.join(self._root, "files"), mode=0o700, exist_ok=True)
        self._work = os.path.join(self._root, "work")
        if self._in_cluster:
            here = os.getcwd()
            self._work = here if os.access(here, os.W_OK) else self._home
        os.makedirs(self._work, exist_ok=True)
        cache = plan.get("cache")
        self._layers = Layers(os.path.join(self._root, "layers"), _writable(cache) if cache else None)
        self._stack, self._paths, self._has_pip = [], [], False
        for digest, data in zip(plan["sent"], files, strict=True):
            path = self._file(digest)
            with open(f"{path}.part", "wb") as f:
                f.write(data)
            os.replace(f"{path}.part", path)
        self._done = self._read_done()
        self._env = {**os.environ, "PYTHONUNBUFFERED": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_USER": "0"}
        for name in _PIP_PLACES:
            self._env.pop(name, None)
        for name, value in (plan.get("before") or {}).items():
            # A step sees the variables that were set before it, not those that come later.
            if name not in (plan.get("keep") or ()):
                self._env.pop(name, None)
                if value is not None:
                    self._env[name] = value
        self._env[_VARIABLE] = os.environ[_VARIABLE] = self._work

    def _set(self, variables: dict[str, str], keep: Sequence[str]) -> None:
        for name, value in variables.items():
            if name not in keep:
                self._env[name] = expand(value, self._env)

    def _one(self, step: dict[str, Any], plan: dict[str, Any], shared: bool, report: Report) -> None:
        if step["kind"] == "copy":
            self._copy(step)
        elif step["kind"] == "sync":
            self._sync(step)
        else:
            self._command(step, plan, shared, report)

    # -- what is done ------------------------------------------------------------------------------------------------

    def _read_done(self) -> set[str]:
        try:
            with open(os.path.join(self._root, "done.json"), encoding="utf-8") as f:
                known = json.load(f)
            return set(known["done"]) if known["life"] == _life(self._local) else set()
        except (FileNotFoundError, ValueError, KeyError):
            return set()

    def _write_down(self, step: dict[str, Any]) -> None:
        if step.get("force"):  # of those before only the last one counts
            self._done = {run for run in self._done if not run.startswith(step["digest"])}
        self._done.add(step["run"])
        path = os.path.join(self._root, "done.json")
        with open(f"{path}.part", "w", encoding="utf-8") as f:
            json.dump({"life": _life(self._local), "done": sorted(self._done)}, f)
        os.replace(f"{path}.part", path)

    def _is_done(self, step: dict[str, Any], shared: bool) -> bool:
        """Whether a step needn't be run; then what it gave is in place."""
        kind, known = step["kind"], step["run"] in self._done
        if kind == "copy":
            return known
        if kind == "sync":
            if not (known and os.path.isdir(self._package(step))):
                return False
            self._add_package(step)
            return True
        layer = self._layer(step, shared)
        # A shared layer may be another service's work.
        if not (known or (kind == "pip" and shared)) or _in_background(step):
            return False
        assert self._layers is not None
        if not self._layers.use(layer):
            return False
        self._add(layer)
        return True

    def _layer(self, step: dict[str, Any], shared: bool) -> Layer:
        assert self._layers is not None
        return self._layers.layer(step["digest"], shared)

    def _add(self, layer: Layer) -> None:
        if not layer.empty:
            self._stack.append(layer)

    def _tidy(self, plan: dict[str, Any]) -> None:
        """Remove the files that no step needs any more."""
        wanted = {f"{step['files']}.zip" for step in plan["steps"] if step.get("files")}
        folder = os.path.join(self._root, "files")
        for name in os.listdir(folder):
            if name not in wanted:
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, name))

    # -- commands ----------------------------------------------------------------------------------------------------

    def _command(self, step: dict[str, Any], plan: dict[str, Any], shared: bool, report: Report) -> None:
        layers, layer = self._layers, self._layer(step, shared)
        assert layers is not None

        def waiting() -> None:
            report.notice("kubetorch: another service is running this step; waiting for it\n")

        with layers.building(layer, waiting):
            if not (shared and layer.complete):
                self._build(step, plan, layer, report)
        layers.use(layer)
        self._add(layer)

    def _build(self, step: dict[str, Any], plan: dict[str, Any], layer: Layer, report: Report) -> None:
        # One that runs at each deploy goes on with what it has: the layers over it, and workers, use it.
        kept = step.get("force") and layer.complete and not layer.empty
        if not kept:
            layer.make(self._stack)
        try:
            env = self._environment([*self._stack, layer])
            if step["kind"] == "pip":
                argv = self._pip(step, plan, layer, env, report)
            else:
                shell = shutil.which("bash", path=env.get("PATH")) or "/bin/sh"
                argv = [shell, "-c", step["text"]]
            ended = self._call(argv, env, report)
            if ended.code:
                raise self._exited(step, ended)
        except FileNotFoundError as e:
            layer.discard()
            raise self._failed(step, f"failed: there is no {e.filename}", None, "") from e
        except BaseException:
            if not kept:
                layer.discard()
            raise
        layer.finish(step["shown"])

    def _call(self, argv: Sequence[str], env: dict[str, str], report: Report) -> Ended:
        return run_command(argv, cwd=self._work, env=env, write=report.write, afterwards=report.afterwards)

    def _pip(
        self, step: dict[str, Any], plan: dict[str, Any], layer: Layer, env: dict[str, str], report: Report
    ) -> list[str]:
        given = plan.get("install_cmd")
        if given:
            return [*shlex.split(given), *requirement(step["text"])]
        if not self._has_pip:
            look = [layer.python, "-c", "import pip"]
            if self._call(look, env, Silent()).code:
                made = self._call([layer.python, "-m", "ensurepip", "--default-pip"], env, report)
                if made.code:
                    what = "can't be run: there is no pip in the pod, and its Python brings none"
                    hint = (
                        "Use an image that has pip, name another installer with kt.Image(install_cmd=...), or install "
                        "pip by a run_bash(...) before it."
                    )
                    raise self._failed(step, what, made.code, _last(made.tail), hint)
            self._has_pip = True
        return [layer.python, "-m", "pip", "install", "--no-input", *requirement(step["text"])]

    def _environment(self, stack: Sequence[Layer]) -> dict[str, str]:
        """What a command runs with, or the worker: the programs and packages of the layers first."""
        env = dict(self._env)
        if stack:
            env["PATH"] = os.pathsep.join([*(layer.bin for layer in reversed(stack)), env.get("PATH") or os.defpath])
            env["VIRTUAL_ENV"] = stack[-1].path
        if self._paths:
            env["PYTHONPATH"] = os.pathsep.join([*self._paths, *filter(None, [env.get("PYTHONPATH")])])
        return env

    # -- files -------------------------------------------------------------------------------------------------------

    def _file(self, digest: str) -> str:
        return os.path.join(self._root, "files", f"{os.path.basename(digest)}.zip")

    def _archive(self, step: dict[str, Any]) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._file(step["files"]))
        except FileNotFoundError:
            text = f"the files of the image step {step['shown']} are not in the pod any more; deploy again to send them"
            raise CallError("StartupError", text, reason="files-missing") from None

    def _copy(self, step: dict[str, Any]) -> None:
        into = os.path.normpath(os.path.join(self._work, os.path.expanduser(step["into"])))
        with self._archive(step) as archive:
            for info in archive.infolist():
                path = os.path.join(into, info.filename)
                if info.is_dir():
                    os.makedirs(path, exist_ok=True)
                    continue
                if os.path.isdir(path):  # as with cp: into it
                    path = os.path.join(path, step["name"])
                _put(archive, info, path)

    def _package(self, step: dict[str, Any]) -> str:
        return os.path.join(self._root, "packages", step["files"])

    def _sync(self, step: dict[str, Any]) -> None:
        path = self._package(step)
        part = f"{path}.{os.getpid()}"
        with self._archive(step) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    _put(archive, info, os.path.join(part, info.filename))
        shutil.rmtree(path, ignore_errors=True)
        os.rename(part, path)
        self._add_package(step)

    def _add_package(self, step: dict[str, Any]) -> None:
        found = [os.path.normpath(os.path.join(self._package(step), path)) for path in step["path"]]
        self._paths = [*found, *self._paths]

    # -- errors ------------------------------------------------------------------------------------------------------

    def _exited(self, step: dict[str, Any], ended: Ended) -> CallError:
        code, last = ended.code, _last(ended.tail)
        how = f"failed with exit code {code}" if code > 0 else f"was {status_text(-code)}"
        return self._failed(step, how, code, last)

    def _failed(
        self, step: dict[str, Any], how: str, code: int | None, last: str, hint: str | None = None
    ) -> CallError:
        text = f"the image step {step['shown']} {how}. {hint or self._hint(step, code, last)}"
        if code is not None and last:
            text += "\nThe last of its output:\n" + "\n".join(f"    {line}" for line in last.splitlines())
        return CallError("StartupError", text, step=step["shown"], exit_code=code, output=last)

    def _hint(self, step: dict[str, Any], code: int | None, last: str) -> str:
        root = os.geteuid() == 0
        installs = step["kind"] == "bash" and _INSTALLERS.search(step["text"])
        if not root and (installs or _NOT_ALLOWED.search(last)):
            if self._local:
                return (
                    "Steps of services on this machine run as you, without root: leave it out, or install it yourself."
                )
            return (
                "Steps run without root, on a file system that is read-only but for the home directory and /tmp: use "
                "kt.Compute(run_as_root=True), or an image that has it."
            )
        if "No matching distribution" in last or "Failed to establish a new connection" in last:
            return (
                "See that the name is right and that the pod can reach the index; another one is named by "
                'set_env_vars({"PIP_INDEX_URL": ...}) before it.'
            )
        if code == 127:
            return "The pod has no such program: install it by a step before it, or use an image that has it."
        if code == -9:
            return "Perhaps its memory ran out: kt.Compute(memory=...) says how much a pod has."
        return "Correct it and deploy again."

    # -- this process ------------------------------------------------------------------------------------------------

    def _apply(self) -> None:
        """Have this process, and what it starts, see the layers, the packages and the variables."""
        env = self._environment(self._stack)
        for name in ("PYTHONUNBUFFERED", "PIP_DISABLE_PIP_VERSION_CHECK", "PIP_USER", *_PIP_PLACES):
            env.pop(name, None)
            if name in os.environ:
                env[name] = os.environ[name]
        os.environ.clear()
        os.environ.update(env)
        time.tzset()
        if self._stack:
            sys.executable = self._stack[-1].python
            if (spawn := sys.modules.get("multiprocessing.spawn")) is not None:
                spawn.set_executable(sys.executable)
        loaded = set(sys.modules)
        before = list(sys.path)
        for layer in reversed(self._stack):
            site.addsitedir(layer.site)
        found = sys.path[len(before) :]
        # After the standard library, as site-packages always are.
        at = 1 + max((i for i, path in enumerate(before) if path in _standard_library()), default=-1)
        sys.path[:] = [*self._paths, *before[:at], *found, *before[at:]]
        self._forget(loaded)
        importlib.invalidate_caches()

    def _forget(self, loaded: set[str]) -> None:
        """Let modules that the pod has imported for itself be imported anew where a layer has another version."""
        names: set[str] = set()
        for layer in self._stack:
            names |= {name.partition(".")[0] for name in os.listdir(layer.site) if not name.endswith(("-info", ".pth"))}
        names &= {name.partition(".")[0] for name in loaded} - _KEEP - sys.stdlib_module_names
        for module in loaded:
            if module.partition(".")[0] in names:
                sys.modules.pop(module, None)


def _in_background(step: dict[str, Any]) -> bool:
    """Whether a step starts something that ends with the worker, and that the next one needs anew."""
    text = step["text"].rstrip()
    return step["kind"] == "bash" and text.endswith("&") and not text.endswith("&&")


def _writable(folder: str) -> str | None:
    """A folder that may be written to, made if need be; None: there is none, or it can't be."""
    if not folder:
        return None
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError:
        return None
    return os.path.realpath(folder) if os.access(folder, os.W_OK) else None


def _standard_library() -> set[str]:
    """Where it is, as ``sys.path`` has it."""
    found = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    zipped = "python{}{}.zip".format(*sys.version_info)
    found |= {os.path.join(path, "lib-dynload") for path in found}
    return found | {os.path.join(os.path.dirname(path), zipped) for path in found}


def _life(local: bool) -> str:
    """What the steps' work outside of our folders lasts as long as.

    Root writes to the container's own file system, which a container that is started again doesn't have any more, while
    the home directory stays.
    """
    return "" if local or os.geteuid() else str(start_of(1))


def _put(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str) -> None:
    """Write a file of an archive, whole or not at all."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    part = f"{path}.{os.getpid()}.part"
    try:
        with archive.open(info) as source, open(part, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        os.chmod(part, (info.external_attr >> 16) & 0o777 or 0o644)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise


def _last(tail: bytes) -> str:
    """The last lines of an output, for people."""
    text = io.StringIO(tail.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n"), newline=None).read()
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-_LINES:])[-_CHARS:]
