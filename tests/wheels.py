"""A package index for tests: tiny wheels, served over HTTP by this process; nothing of the internet is used."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Index", "serve_index"]


def make_wheel(name: str, version: str, requires: tuple[str, ...] = (), program: str | None = None) -> bytes:
    """A pure-Python wheel of a module with ``VERSION``, and perhaps a program that prints it."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f"VERSION = {version!r}\n\n\ndef main():\n    print('{name}', VERSION)\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"Requires-Dist: {r}\n" for r in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if program:
        files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{program} = {name}:main\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        rows = []
        for path, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            rows.append(f"{path},sha256={digest},{len(text)}\n")
            z.writestr(path, text)
        z.writestr(f"{info}/RECORD", "".join(rows) + f"{info}/RECORD,,\n")
    return out.getvalue()


class Index:
    """What is served, and what was asked for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.wheels: dict[str, bytes] = {}
        #: Names of the wheels that were downloaded, in order.
        self.downloads: list[str] = []

    def add(self, name: str, version: str, requires: tuple[str, ...] = (), program: str | None = None) -> None:
        """Offer a package."""
        self.wheels[f"{name}-{version}-py3-none-any.whl"] = make_wheel(name, version, requires, program)

    def page(self, project: str) -> bytes | None:
        """The simple index's page of a project; None when there is none."""
        names = [wheel for wheel in self.wheels if wheel.split("-")[0] == project]
        if not names:
            return None
        return "".join(f'<a href="/files/{name}">{name}</a>\n' for name in names).encode()

    @property
    def env(self) -> dict[str, str]:
        """What pip needs to know."""
        return {"PIP_INDEX_URL": f"{self.url}/simple", "PIP_NO_CACHE_DIR": "1", "PIP_RETRIES": "0"}


class _Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, index: Index, *args: object) -> None:
        self.index = index
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        name = self.path.rstrip("/").rsplit("/", 1)[-1]
        body = self.index.wheels.get(name) if self.path.startswith("/files/") else self.index.page(name)
        if self.path.startswith("/files/") and body is not None:
            self.index.downloads.append(name)
        self.send_response(200 if body is not None else 404)
        self.send_header("Content-Type", "text/html" if self.path.startswith("/simple") else "application/octet-stream")
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve_index(host: str = "127.0.0.1") -> Iterator[Index]:
    """An index, as long as the block lasts; ``host`` is the address that it is asked at."""
    index = Index("")
    server = http.server.ThreadingHTTPServer((host, 0), functools.partial(_Handler, index))
    index.url = f"http://{host}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
