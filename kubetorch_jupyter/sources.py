"""Source files that travel with a callable: cells, scripts, and the user's own modules.

A module is *local* when it comes from outside the standard library and site-packages: the user's project. Its whole
top-level package travels, as a zip that is the same for the same files, with every local module that it imports.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.machinery
import io
import linecache
import os
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = [
    "LocalModule",
    "Tree",
    "collect",
    "find_module",
    "find_sources",
    "imported_names",
    "is_local_file",
    "pack_zip",
    "walk",
]

#: Never sent: caches, version control, environments, what editors and notebooks leave behind.
_IGNORED_DIRS = frozenset(
    (
        *("__pycache__", ".git", ".hg", ".svn", ".venv", "node_modules", ".ipynb_checkpoints", ".mypy_cache", ".tox"),
        *(".pytest_cache", ".ruff_cache", ".nox", ".eggs", ".idea", ".vscode", "site-packages", "dist-packages"),
    )
)
_IGNORED_SUFFIXES = (".pyc", ".pyo", ".ipynb", ".egg-info", ".dist-info", ".swp", ".tmp")
#: A file of a package that is no source stays at home above this many bytes.
DATA_LIMIT = 10 * 1024**2
#: A ``sync_dir`` or package that is larger than this is said to be large.
TREE_WARNING = 100 * 1024**2
#: Ours: they are in the pod already.
_OWN = frozenset(("kubetorch_jupyter", "pod_server"))
#: Modification time of everything in a zip, so that the same files give the same bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class LocalModule:
    """A top-level module or package of the user's.

    Parameters
    ----------
    name
        As it is imported.
    paths
        The ``.py`` file, or the package's folder (several for a namespace package).
    """

    name: str
    paths: tuple[str, ...]


@dataclass
class Tree:
    """Files to send.

    Parameters
    ----------
    files
        Path inside the zip, and the file.
    modules
        The top-level modules among them: name, and the number of files and bytes.
    imports
        Top-level names that the files import and that are not local.
    warnings
        What stayed at home, for people.
    """

    files: dict[str, str] = field(default_factory=dict)
    modules: dict[str, tuple[int, int]] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)


@functools.cache
def _installed_prefixes() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    found = {paths[k] for k in ("stdlib", "platstdlib", "purelib", "platlib") if k in paths}
    found.update(os.path.realpath(p) for p in list(found))
    return tuple(p.rstrip(os.sep) + os.sep for p in found if p)


def is_local_file(path: str | None) -> bool:
    """Whether a module's file is part of the user's project.

    Examples
    --------
    >>> is_local_file(os.__file__), is_local_file("/home/me/project/mylib.py")
    (False, True)
    """
    if not path or not os.path.isabs(path):
        return False
    if path.startswith(_installed_prefixes()) or os.path.realpath(path).startswith(_installed_prefixes()):
        return False
    parts = path.split(os.sep)
    return "site-packages" not in parts and "dist-packages" not in parts


def find_module(name: str) -> LocalModule | None:
    """The local top-level module of this name, or None when it is installed, built in, ours or missing.

    Nothing is imported: what is imported already is looked up, anything else is searched for on ``sys.path``.
    """
    top = name.partition(".")[0]
    if top in _OWN or top == "__main__" or top in sys.builtin_module_names or top in sys.stdlib_module_names:
        return None
    spec = getattr(sys.modules.get(top), "__spec__", None)
    if spec is None:
        try:
            spec = importlib.machinery.PathFinder.find_spec(top)
        except (ImportError, ValueError):  # a finder on sys.path that fails; the import would fail as well
            return None
    if spec is None:
        return None
    if spec.submodule_search_locations is not None:
        folders = tuple(p for p in spec.submodule_search_locations if is_local_file(p) and os.path.isdir(p))
        return LocalModule(top, folders) if folders else None
    if spec.origin is not None and spec.has_location and is_local_file(spec.origin) and os.path.isfile(spec.origin):
        return LocalModule(top, (spec.origin,))
    return None


@functools.lru_cache(maxsize=2048)
def _imports_of_file(path: str, mtime: int, size: int) -> frozenset[str]:
    try:
        return imported_names(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):  # e.g. a template; whoever imports it will be told
        return frozenset()


def imported_names(source: str | bytes) -> frozenset[str]:
    r"""The top-level names that a source imports absolutely.

    Examples
    --------
    >>> sorted(imported_names("import a.b, c\nfrom d.e import f\nfrom . import g"))
    ['a', 'c', 'd']
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    return frozenset(names)


def walk(folder: str) -> Iterator[tuple[str, str]]:
    """Path relative to the folder, and path, of each file that may travel, in an order that is always the same."""
    for here, dirs, names in os.walk(folder):
        dirs[:] = sorted(
            d
            for d in dirs
            if d not in _IGNORED_DIRS
            and not d.endswith(_IGNORED_SUFFIXES)
            and not os.path.exists(os.path.join(here, d, "pyvenv.cfg"))
        )
        for name in sorted(names):
            path = os.path.join(here, name)
            if not name.endswith(_IGNORED_SUFFIXES) and name != ".DS_Store" and os.path.isfile(path):
                yield os.path.relpath(path, folder).replace(os.sep, "/"), path


def _add_folder(tree: Tree, folder: str, prefix: str) -> list[str]:
    """Add a folder's files below ``prefix``; gives the Python files among them."""
    sources = []
    for relative, path in walk(folder):
        is_source = path.endswith((".py", ".pyi"))
        size = os.path.getsize(path)
        if not is_source and size > DATA_LIMIT:
            tree.warnings.append(f"{path} ({size / 1024**2:.0f} MiB) is not sent: it is no source, and large")
            continue
        inside = f"{prefix}/{relative}" if prefix else relative
        tree.files.setdefault(inside, path)
        if is_source:
            sources.append(path)
    return sources


def collect(names: Iterable[str], folder: str | os.PathLike[str] | None = None) -> Tree:
    """The files of local modules, and of the local modules that they import.

    Parameters
    ----------
    names
        Modules; those that aren't local are left out.
    folder
        A folder to send besides, as ``sync_dir`` names it. What lies in it is importable by the path below it; a
        folder that is itself a package, by its name.

    Raises
    ------
    NotADirectoryError
        When ``folder`` is none.
    """
    tree = Tree()
    todo = {name.partition(".")[0] for name in names}
    done: set[str] = set()
    sources: list[str] = []
    if folder is not None:
        root = os.path.abspath(os.path.expanduser(os.fspath(folder)))
        if not os.path.isdir(root):
            raise NotADirectoryError(f"sync_dir={os.fspath(folder)!r} is not a folder")
        is_package = os.path.exists(os.path.join(root, "__init__.py"))
        sources = _add_folder(tree, root, os.path.basename(root) if is_package else "")
        _note_module(tree, os.path.basename(root) or root, list(tree.files.values()))
    while todo or sources:
        for path in sources:
            stat = os.stat(path)
            todo |= _imports_of_file(path, stat.st_mtime_ns, stat.st_size)
        sources = []
        for name in sorted(todo - done):
            done.add(name)
            module = find_module(name)
            if module is None:
                tree.imports.add(name)
            else:
                sources += _add_module(tree, module)
        todo = set()
    return tree


def _add_module(tree: Tree, module: LocalModule) -> list[str]:
    before = set(tree.files)
    sent = set(tree.files.values())
    sources: list[str] = []
    for path in module.paths:
        if os.path.isdir(path):
            if path + os.sep not in {p[: len(path) + 1] for p in sent}:
                sources += _add_folder(tree, path, module.name)
        elif path not in sent:
            tree.files.setdefault(os.path.basename(path), path)
            if path.endswith(".py"):
                sources.append(path)
    _note_module(tree, module.name, [p for inside, p in tree.files.items() if inside not in before])
    return sources


def _note_module(tree: Tree, name: str, paths: list[str]) -> None:
    if not paths:
        return
    size = sum(os.path.getsize(p) for p in paths)
    tree.modules[name] = (len(paths), size)
    if size > TREE_WARNING:
        tree.warnings.append(
            f"{name} has {size / 1024**2:.0f} MiB in {len(paths)} files, which all travel: move data out of the "
            "package, or name a smaller folder by sync_dir="
        )


def pack_zip(tree: Tree) -> tuple[bytes, str]:
    """The files as a zip, and a hash of their names and contents; empty bytes when there are none.

    Examples
    --------
    >>> pack_zip(Tree())
    (b'', '')
    """
    if not tree.files:
        return b"", ""
    digest = hashlib.blake2b(digest_size=16)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as z:
        for inside, path in sorted(tree.files.items()):
            data = Path(path).read_bytes()
            digest.update(f"{inside}\0{len(data)}\0".encode("utf-8", "surrogateescape"))
            digest.update(data)
            info = zipfile.ZipInfo(inside, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (0o755 if os.access(path, os.X_OK) else 0o644) << 16
            z.writestr(info, data)
    return out.getvalue(), digest.hexdigest()


def find_sources(files: Iterable[str]) -> dict[str, str]:
    """The text of cells and scripts, as far as it can be had: ``{file name: text}`` for ``linecache``."""
    found: dict[str, str] = {}
    for file in sorted(set(files)):
        if os.path.isabs(file) and os.path.exists(file) and not is_local_file(file):
            continue  # the library's own, as with the methods that a dataclass or a named tuple gets
        linecache.checkcache(file)
        if lines := linecache.getlines(file):
            found[file] = "".join(lines)
    return found
