"""Which API server, and as whom: a kubeconfig's context, or what Kubernetes gives to each pod.

kubectl's rules, with errors that name the file, the context, and those that there are. It reads files, so it runs in a
thread; whoever asks for a token later, and how often, is the business of ``credentials.py``.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...errors import ConfigError

__all__ = ["SERVICE_ACCOUNT", "Settings", "load", "read_bytes"]

#: Where Kubernetes puts a pod's own credentials.
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True)
class Settings:
    """One API server and one identity.

    Parameters
    ----------
    server
        ``https://host:port``, perhaps with a path (Rancher), without a slash at the end.
    namespace
        The context's, or the service account's.
    context
        The context's name; None in a cluster.
    source
        Where this stands, for people.
    user
        The kubeconfig's section of the user; never shown in a repr.
    user_name
        What the kubeconfig calls the user.
    base
        The folder that paths in ``user`` are relative to.
    ca
        The certificates to trust, as PEM; None: the system's.
    verify
        Whether to verify the server's certificate.
    server_name
        The name to look for in the certificate, if it isn't the host's.
    proxy
        An HTTP proxy on the way there.
    in_cluster
        Whether this process runs in a pod of that cluster.
    path
        What was given to `load`.
    """

    server: str
    namespace: str
    context: str | None
    source: str
    user: Mapping[str, Any] = field(default_factory=dict, repr=False)
    user_name: str = ""
    base: Path = Path()
    ca: str | None = field(default=None, repr=False)
    verify: bool = True
    server_name: str | None = None
    proxy: str | None = None
    in_cluster: bool = False
    path: str | None = None


def load(path: str | None = None, context: str | None = None) -> Settings:
    """Find and read the configuration.

    Parameters
    ----------
    path
        A kubeconfig; by default those of ``$KUBECONFIG``, in a pod its service account, else ``~/.kube/config``.
    context
        A context of it, if not its current one.

    Raises
    ------
    ConfigError
        When there is none, or it makes no sense.
    """
    if path is not None:
        return replace(_from_files([Path(path).expanduser()], context, "the kubeconfig"), path=path)
    named = [Path(part).expanduser() for part in os.environ.get("KUBECONFIG", "").split(os.pathsep) if part]
    if named:
        return _from_files(named, context, "the kubeconfig of $KUBECONFIG,")
    if context is None and (found := _from_service_account()) is not None:
        return found
    return _from_files([Path.home() / ".kube" / "config"], context, "the kubeconfig")


def _from_service_account(folder: Path | None = None) -> Settings | None:
    folder = folder or SERVICE_ACCOUNT
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    token = folder / "token"
    if not host or not token.is_file():
        return None
    try:
        ca = (folder / "ca.crt").read_text()
        namespace = (folder / "namespace").read_text().strip()
    except OSError as e:
        raise ConfigError(
            f"this pod has a service account, but {e.filename} can't be read: {e.strerror}. "
            "Name a kubeconfig with kubeconfig_path, or have the pod made with its service account's files"
        ) from e
    return Settings(
        server=f"https://{f'[{host}]' if ':' in host else host}:{port}",
        namespace=namespace or "default",
        context=None,
        source="the service account of this pod",
        user={"tokenFile": str(token)},
        user_name="the service account of this pod",
        base=folder,
        ca=ca,
        in_cluster=True,
    )


# -- kubeconfigs -------------------------------------------------------------------------------------------------------


@dataclass
class _Merged:
    """What several kubeconfigs say together: the first to name something decides, as with kubectl."""

    where: str
    current: str | None = None
    #: kind of entry → name → (its section, the folder of its file)
    entries: dict[str, dict[str, tuple[Mapping[str, Any], Path]]] = field(default_factory=dict)

    def get(self, kind: str, name: str, why: str) -> tuple[Mapping[str, Any], Path]:
        entry = self.entries.get(kind, {}).get(name)
        if entry is None:
            raise ConfigError(f"{self.where} has no {kind} called {name!r}, which {why}; repair it, or use another")
        return entry


def _from_files(paths: Sequence[Path], context: str | None, what: str) -> Settings:
    there = [path for path in paths if path.exists()]
    names = ", ".join(map(str, there or paths))
    if not there:
        raise ConfigError(
            f"no kubeconfig: {names} does not exist. Log in to your cluster as its provider says (that writes one), "
            "name one with Compute(kubeconfig_path=...) or $KUBECONFIG, or deploy to this machine with backend: local"
        )
    merged = _Merged(f"{what} {names}")
    for path in there:
        _merge(merged, path)
    contexts = merged.entries.get("context", {})
    known = ", ".join(sorted(contexts)) or "none"
    name = context or merged.current
    if not name:
        raise ConfigError(
            f"{merged.where} has no current context (there are: {known}): choose one with "
            "`kubectl config use-context`, or with kt.config.context"
        )
    if name not in contexts:
        whose = "asked for" if context else "its current-context"
        raise ConfigError(f"{merged.where} has no context {name!r} ({whose}); there are: {known}")
    section = contexts[name][0]
    cluster, folder = merged.get("cluster", str(section.get("cluster", "")), f"context {name!r} names")
    server = str(cluster.get("server") or "").rstrip("/")
    if not server.startswith(("https://", "http://")):
        raise ConfigError(
            f"{merged.where}: the cluster of context {name!r} has no server, or not an address: {server!r}"
        )
    proxy = cluster.get("proxy-url") or None
    if proxy is not None and not str(proxy).startswith("http://"):
        raise ConfigError(f"{merged.where}: the proxy-url {proxy} is not supported here; use an http:// proxy")
    user: Mapping[str, Any] = {}
    base = folder
    user_name = str(section.get("user") or "")
    if user_name:
        user, base = merged.get("user", user_name, f"context {name!r} names")
    ca = read_bytes(cluster, "certificate-authority", folder, merged.where)
    return Settings(
        server=server,
        namespace=str(section.get("namespace") or "default"),
        context=name,
        source=merged.where,
        user=user,
        user_name=user_name,
        base=base,
        ca=ca.decode("ascii", "replace") if ca else None,
        verify=not cluster.get("insecure-skip-tls-verify"),
        server_name=cluster.get("tls-server-name") or None,
        proxy=proxy,
    )


def _merge(merged: _Merged, path: Path) -> None:
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else str(e)
        raise ConfigError(f"the kubeconfig {path} can't be read: {why}. Check its rights, or name another") from e
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        at = f" (line {mark.line + 1})" if mark is not None else ""
        raise ConfigError(f"the kubeconfig {path} is not YAML{at}: repair it, or name another") from e
    if loaded is None:
        return  # an empty file is what a first `kubectl config` begins with
    if not isinstance(loaded, dict):
        raise ConfigError(f"the file {path} is not a kubeconfig: repair it, or name another")
    if merged.current is None:
        merged.current = loaded.get("current-context") or None
    for kind in ("cluster", "context", "user"):
        named = merged.entries.setdefault(kind, {})
        entries = loaded.get(f"{kind}s") or []
        if not isinstance(entries, list):
            raise ConfigError(f"the kubeconfig {path} has something else than a list of {kind}s: repair it")
        for entry in entries:
            section = entry.get(kind) if isinstance(entry, dict) else None
            if isinstance(entry, dict) and entry.get("name") and isinstance(section or {}, dict):
                named.setdefault(str(entry["name"]), (section or {}, path.parent))


def read_bytes(section: Mapping[str, Any], key: str, base: Path, where: str) -> bytes | None:
    """What ``key`` (a file's name) or ``key-data`` (base64) of a section holds.

    Raises
    ------
    ConfigError
        When it can't be read.
    """
    data = section.get(f"{key}-data")
    if data:
        try:
            return base64.b64decode(data, validate=False)
        except (binascii.Error, ValueError, TypeError) as e:
            raise ConfigError(
                f"{where}: {key}-data is not base64; log in to the cluster again to have it written"
            ) from e
    name = section.get(key)
    if not name:
        return None
    path = base / Path(str(name)).expanduser()
    try:
        return path.read_bytes()
    except OSError as e:
        raise ConfigError(f"{where} names {path} ({key}), which can't be read: {e.strerror}") from e
