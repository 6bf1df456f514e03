"""A `Proxy` between this process and the API server: it ends the client's TLS, so that it sees the frames, and begins
its own beyond. A kubeconfig of its own leads through it.
"""

from __future__ import annotations

import base64
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.faults.proxy import Proxy

__all__ = ["gateway"]


@contextmanager
def gateway(kubeconfig: Path, folder: Path) -> Iterator[tuple[Proxy, Path]]:
    """The proxy, and the same user's kubeconfig through it.

    Parameters
    ----------
    kubeconfig
        The user's; of its current context.
    folder
        For the certificate and the new kubeconfig.
    """
    loaded = yaml.safe_load(kubeconfig.read_text())
    context = _entry(loaded, "context", loaded["current-context"])
    cluster = _entry(loaded, "cluster", context["cluster"])
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    beyond = ssl.create_default_context(cadata=authority)
    certificate, key = _certificate(folder)
    before = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    before.load_cert_chain(certificate, key)
    proxy = Proxy(cluster["server"], beyond=beyond, before=before)
    cluster["server"] = proxy.url
    cluster["certificate-authority-data"] = base64.b64encode(certificate.read_bytes()).decode()
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(loaded))
    try:
        yield proxy, path
    finally:
        proxy.close()


def _entry(loaded: dict[str, object], kind: str, name: str) -> dict[str, str]:
    entries = loaded[f"{kind}s"]
    assert isinstance(entries, list)
    [found] = [entry[kind] for entry in entries if entry["name"] == name]
    assert isinstance(found, dict)
    return found


def _certificate(folder: Path) -> tuple[Path, Path]:
    """One for 127.0.0.1, signed by itself."""
    certificate, key = folder / "proxy.crt", folder / "proxy.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key
