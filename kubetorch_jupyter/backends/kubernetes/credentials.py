"""Who we are to an API server, at this moment: tokens that rotate, exec plugins, client certificates.

Every request and every new connection asks anew, which costs nothing while what is known still holds.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import datetime
import json
import logging
import os
import ssl
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ConfigError, KubernetesCredentialsError
from .kubeconfig import Settings, load, read_bytes

__all__ = ["Credentials"]

log = logging.getLogger(__name__)

#: A token's file is read again after so many seconds: the kubelet, too, replaces it long before it expires.
_REREAD = 30.0
#: What expires within so many seconds counts as expired.
_SKEW = 30.0
#: What has failed fails again for so many seconds without being tried: some plugins open a browser each time.
_FAILED = 3.0
#: How long an exec plugin may take, in seconds: some ask a server of their own.
_PLUGIN_TIMEOUT = 60.0


class Credentials:
    """The identity of a context.

    Parameters
    ----------
    settings
        The context.

    Attributes
    ----------
    kind
        What it is, for people: ``"a token"``, ``"the exec plugin aws"`` …
    tls
        The TLS context for connections to that server; None when it doesn't speak TLS. It stays the same object when
        a client certificate is replaced.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._user = settings.user
        self._headers: dict[str, str] = {}
        self._until = 0.0
        #: When what we have expires, in unix time: a machine that slept must not trust its monotonic clock.
        self._expires = float("inf")
        self._lock = asyncio.Lock()
        #: When the last try failed (monotonic), and how.
        self._failed: tuple[float, KubernetesCredentialsError] | None = None
        self._plugin: Mapping[str, Any] | None = self._user.get("exec") or None
        self.kind = _kind(self._user)
        self.tls: ssl.SSLContext | None = None

    @classmethod
    def load(cls, settings: Settings) -> Credentials:
        """Read what doesn't change; in a thread, since it reads files.

        Raises
        ------
        ConfigError
            When the kubeconfig names something that isn't there, or that we don't know.
        """
        self = cls(settings)
        user = self._user
        if any(user.get(key) for key in ("as-groups", "as-uid", "as-user-extra")):
            raise ConfigError(
                f"{settings.source}: user {settings.user_name!r} impersonates with as-groups, as-uid or as-user-extra, "
                "which is not supported here; use a context without them"
            )
        provider = (user.get("auth-provider") or {}).get("name")
        if provider not in (None, "oidc"):
            raise ConfigError(
                f"{settings.source}: user {settings.user_name!r} has the auth-provider {provider!r}, which Kubernetes "
                "itself has given up in 1.26: log in again with your provider's exec plugin (gke-gcloud-auth-plugin, "
                "kubelogin, ...)"
            )
        if settings.server.startswith("https://"):
            self.tls = _tls(settings)
            self._use_own_certificate()
        return self

    def _use_own_certificate(self) -> None:
        settings = self._settings
        cert = read_bytes(self._user, "client-certificate", settings.base, settings.source)
        key = read_bytes(self._user, "client-key", settings.base, settings.source)
        if cert and key and self.tls is not None:
            _use_certificate(self.tls, cert, key, settings.source)
        elif cert or key:
            missing = "client-key" if cert else "client-certificate"
            raise ConfigError(f"{settings.source}: user {settings.user_name!r} has no {missing}; log in again")

    def _reload(self) -> None:
        """Look into the kubeconfig again: a login may have put another token or certificate there."""
        try:
            self._user = load(self._settings.path, self._settings.context).user
            if self.tls is not None:
                self._use_own_certificate()
        except ConfigError:
            log.debug("the kubeconfig can't be read again; what was in it is used on", exc_info=True)

    async def headers(self, *, renew: bool = False) -> Mapping[str, str]:
        """The headers that say who we are.

        Parameters
        ----------
        renew
            The server has refused what we had: get others, if there are any.

        Raises
        ------
        KubernetesCredentialsError
            When a plugin or a file doesn't give them.
        """
        if not renew and time.monotonic() < self._until and not self._expired():
            return self._headers
        before = self._headers
        async with self._lock:
            if self._headers is not before and not self._expired():
                return self._headers  # somebody else has just got them
            if renew and self._plugin is None and not self._settings.in_cluster:
                await asyncio.to_thread(self._reload)
            if self._failed is not None and time.monotonic() - self._failed[0] < _FAILED:
                raise copy.copy(self._failed[1])
            try:
                authorization, until = await self._fetch()
            except KubernetesCredentialsError as e:
                self._failed = time.monotonic(), e
                raise
            headers = {"Authorization": authorization} if authorization else {}
            if self._user.get("as"):
                headers["Impersonate-User"] = str(self._user["as"])
            self._headers = headers
            self._until, self._expires = until
        return headers

    def _expired(self) -> bool:
        return time.time() > self._expires - _SKEW

    async def _fetch(self) -> tuple[str | None, tuple[float, float]]:
        """The Authorization, until when it is used unseen (monotonic) and when it expires (unix time)."""
        user, never = self._user, float("inf")
        if self._plugin is not None:
            status = await self._run_plugin(self._plugin)
            return self._from_plugin(status)
        if user.get("tokenFile"):
            token = await asyncio.to_thread(self._read_token)
            return f"Bearer {token}", (time.monotonic() + _REREAD, never)
        if user.get("token"):
            return f"Bearer {user['token']}", (never, never)
        if user.get("auth-provider"):
            return self._from_oidc()
        if user.get("username") and user.get("password"):
            both = f"{user['username']}:{user['password']}".encode()
            return "Basic " + base64.b64encode(both).decode(), (never, never)
        return None, (never, never)

    def _read_token(self) -> str:
        path = self._settings.base / Path(str(self._user["tokenFile"])).expanduser()
        try:
            token = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as e:
            why = e.strerror if isinstance(e, OSError) else "it is not text"
            raise KubernetesCredentialsError(
                f"the token for {self._settings.server} can't be read from {path} ({self._settings.source}): {why}",
                reason="TokenFile",
            ) from e
        if not token:
            raise KubernetesCredentialsError(
                f"the file {path} ({self._settings.source}) should hold the token for {self._settings.server}, and is "
                "empty",
                reason="TokenFile",
            )
        return token

    def _from_oidc(self) -> tuple[str, tuple[float, float]]:
        token = str((self._user["auth-provider"].get("config") or {}).get("id-token") or "")
        expires = _jwt_expiry(token)
        if not token or time.time() > expires:
            raise KubernetesCredentialsError(
                f"the OpenID token of user {self._settings.user_name!r} in {self._settings.source} has "
                f"{'expired' if token else 'not been written yet'}: run any kubectl command, which gets a new one, "
                "and try again",
                reason="Expired",
            )
        return f"Bearer {token}", (float("inf"), float("inf"))

    # -- exec plugins ------------------------------------------------------------------------------------------------

    async def _run_plugin(self, plugin: Mapping[str, Any]) -> Mapping[str, Any]:
        """Run it in a thread, where nobody's event loop policy matters; being cancelled ends it."""
        run = _Plugin(plugin, self._settings)
        try:
            return await asyncio.to_thread(run)
        except asyncio.CancelledError:
            run.kill()
            raise

    def _from_plugin(self, status: Mapping[str, Any]) -> tuple[str | None, tuple[float, float]]:
        expires = _rfc3339(status.get("expirationTimestamp"))
        cert, key = status.get("clientCertificateData"), status.get("clientKeyData")
        if cert and key and self.tls is not None:
            # The same context, with another certificate for connections to come.
            _use_certificate(self.tls, str(cert).encode(), str(key).encode(), f"the {self.kind}")
        token = status.get("token")
        if not token and not (cert and key):
            raise KubernetesCredentialsError(
                f"{self.kind}, which should log us in to {self._settings.server}, gave neither a token nor a "
                "certificate",
                reason="ExecPlugin",
            )
        return f"Bearer {token}" if token else None, (float("inf"), expires)


class _Plugin:
    """One run of an exec plugin; calling it blocks."""

    def __init__(self, plugin: Mapping[str, Any], settings: Settings) -> None:
        self._plugin = plugin
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False

    def kill(self) -> None:
        """End it; its caller has gone."""
        self._killed = True
        process = self._process
        if process is not None:
            process.kill()

    def __call__(self) -> Mapping[str, Any]:
        plugin = self._plugin
        command = str(plugin.get("command") or "")
        version = str(plugin.get("apiVersion") or "")
        if "/" in command:
            command = str(self._settings.base / Path(command).expanduser())
        arguments = [command, *(str(a) for a in plugin.get("args") or [])]
        env = {**os.environ, **{str(e["name"]): str(e.get("value", "")) for e in plugin.get("env") or []}}
        spec: dict[str, Any] = {"interactive": False}
        if plugin.get("provideClusterInfo"):
            spec["cluster"] = {
                "server": self._settings.server,
                "insecure-skip-tls-verify": not self._settings.verify,
                **({"tls-server-name": self._settings.server_name} if self._settings.server_name else {}),
                **({"proxy-url": self._settings.proxy} if self._settings.proxy else {}),
            }
            if self._settings.ca:
                spec["cluster"]["certificate-authority-data"] = base64.b64encode(self._settings.ca.encode()).decode()
        env["KUBERNETES_EXEC_INFO"] = json.dumps({"apiVersion": version, "kind": "ExecCredential", "spec": spec})
        try:
            process = self._process = subprocess.Popen(
                arguments, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as e:
            hint = str(plugin.get("installHint") or "").strip() or "install it, or log in to the cluster another way"
            what = "is not installed here" if isinstance(e, FileNotFoundError) else f"can't be run: {e.strerror}"
            raise self._error(f"{what}: {hint}") from e
        if self._killed:
            process.kill()
        try:
            out, err = process.communicate(timeout=_PLUGIN_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise self._error(
                f"did not answer within {_PLUGIN_TIMEOUT:g} s; perhaps it waits for a login: run `kubectl get pods` "
                "once in a terminal"
            ) from None
        said = err.decode("utf-8", "replace").strip()
        if process.returncode:
            told = f":\n{said[-2000:]}\n" if said else ". "
            raise self._error(
                f"failed with exit code {process.returncode}{told}Run `kubectl get pods` in a terminal: it uses the "
                "same plugin, and perhaps you have to log in again"
            )
        try:
            answer = json.loads(out)
            status = answer["status"]
        except (ValueError, KeyError, TypeError) as e:
            raise self._error(f"answered with no ExecCredential{f': {said[-2000:]}' if said else ''}") from e
        if answer.get("apiVersion") != version:
            raise self._error(
                f"speaks {answer.get('apiVersion')}, and the kubeconfig says {version}: log in again, or update it"
            )
        return status if isinstance(status, dict) else {}

    def _error(self, what: str) -> KubernetesCredentialsError:
        command = self._plugin.get("command")
        return KubernetesCredentialsError(
            f"the exec plugin {command}, which should log us in to {self._settings.server} ({self._settings.source}, "
            f"user {self._settings.user_name!r}), {what}",
            reason="ExecPlugin",
        )


# -- TLS ---------------------------------------------------------------------------------------------------------------


def _tls(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=settings.ca)
    except (ssl.SSLError, ValueError) as e:
        raise ConfigError(f"{settings.source}: the cluster's certificate-authority is not a certificate ({e})") from e
    # Kubernetes' own tools don't ask for the extensions that Python 3.13 wants, and many clusters' CAs lack them.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["http/1.1"])
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _use_certificate(context: ssl.SSLContext, cert: bytes, key: bytes, where: str) -> None:
    # OpenSSL takes a key from a file only: one of ours alone, gone again before anything else happens.
    with tempfile.TemporaryDirectory(prefix="kt-") as folder:
        path = Path(folder) / "both.pem"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(cert.rstrip() + b"\n" + key)
        try:
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(path, password="")
        except (ssl.SSLError, ValueError) as e:
            raise ConfigError(
                f"{where}: the client certificate and its key can't be used ({e}); log in to the cluster again"
            ) from e


# -- small things ------------------------------------------------------------------------------------------------------


def _kind(user: Mapping[str, Any]) -> str:
    if user.get("exec"):
        return f"the exec plugin {user['exec'].get('command')}"
    if user.get("tokenFile"):
        return f"the token in {user['tokenFile']}"
    if user.get("token"):
        return "a token"
    if user.get("auth-provider"):
        return "an OpenID token"
    if user.get("client-certificate") or user.get("client-certificate-data"):
        return "a client certificate"
    if user.get("username"):
        return "a password"
    return "no credentials"


def _jwt_expiry(token: str) -> float:
    try:
        part = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return float(claims["exp"])
    except (IndexError, KeyError, ValueError, TypeError):
        return float("inf")  # the server knows


def _rfc3339(text: Any) -> float:
    if not text:
        return float("inf")
    try:
        return datetime.datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        log.debug("an exec plugin's expirationTimestamp makes no sense: %r", text)
        return float("inf")  # the server will refuse it when it is over
