"""Requests to one API server: who asks, on which connections, and what is said when it goes wrong.

The official client makes the connections; its model classes are left alone, since they cost time and say no more than
the JSON. All of it runs on the portal.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast
from urllib.parse import urlencode

from ...errors import ConnectionFailedError, KubernetesCredentialsError, KubetorchError
from . import kubeconfig
from .credentials import Credentials
from .failures import refused

__all__ = ["JSON", "Rest", "lines", "network_errors", "why"]

#: For one connection, and for one request, in seconds.
_CONNECT_TIMEOUT = 5.0
_TIMEOUT = 30.0
#: Silence of so many seconds ends a watch: the server sends bookmarks about once a minute.
_WATCH_SILENCE = 80.0
#: How often a request is made again that the server was too busy for.
_BUSY_TRIES = 4
#: For so many seconds after a server was away its refusals don't count, and the pause before it is asked again: one
#: that has just started refuses everybody until it knows its accounts and roles.
_WAKING, _WAKING_PAUSE = 10.0, 0.3
#: How often what says who we are is renewed for a request that is refused: another request may have got it just before
#: it was replaced.
_RENEWALS = 2
#: What is taken for an answer.
JSON = "application/json, */*"


class _Busy(Exception):
    """The server is too busy, or still starting; ``after`` seconds it may not be."""

    def __init__(self, after: float, error: KubetorchError) -> None:
        super().__init__(str(error))
        self.after = after
        self.error = error


class Rest:
    """The connections to an API server.

    Parameters
    ----------
    settings, credentials
        Which, and as whom.
    """

    def __init__(self, settings: kubeconfig.Settings, credentials: Credentials) -> None:
        self.settings = settings
        self.credentials = credentials
        self.server = settings.server
        self.closed = False
        #: When it was last found to be away.
        self._away = float("-inf")
        self._connections = _connections(settings, credentials)

    @classmethod
    def load(cls, path: str | None, context: str | None) -> Rest:
        """All that takes its time: files, and the import of the official client; in a thread."""
        settings = kubeconfig.load(path, context)
        return cls(settings, Credentials.load(settings))

    @property
    def waking(self) -> bool:
        """Whether the server was away until a moment ago, so that a refusal says nothing yet."""
        return time.monotonic() - self._away < _WAKING

    async def close(self) -> None:
        """Close the connections."""
        self.closed = True
        await self._connections.close()

    # -- requests ----------------------------------------------------------------------------------------------------

    async def ask_json(
        self,
        method: str,
        path: str,
        doing: str,
        namespace: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        media: str = "application/json",
        accept: str = JSON,
    ) -> dict[str, Any]:
        """As `ask`, for an answer in JSON.

        Raises
        ------
        DeployError, KubernetesCredentialsError, ResourceNotAvailableError
            When the server refuses; ``reason`` is Kubernetes' word for it.
        ConnectionFailedError
            When it can't be reached, or what answers isn't an API server.
        """
        text = await self.ask(method, path, doing, namespace, query=query, body=body, media=media, accept=accept)
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            begin = " ".join(text[:200].decode("utf-8", "replace").split())
            raise self.unreachable(f"is not a Kubernetes API server, or a login page stands before it: {begin!r}")
        return answer

    async def ask(
        self,
        method: str,
        path: str,
        doing: str,
        namespace: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        media: str = "application/json",
        accept: str = JSON,
    ) -> bytes:
        """One answer as a whole; what may be asked twice is, when the connection breaks."""
        for again in (method != "POST", False):
            try:
                response = await self.send(
                    method, path, doing, namespace, query=query, body=body, media=media, accept=accept
                )
                async with response:
                    return cast(bytes, await response.read())
            except ConnectionFailedError:
                if not again or self.closed:
                    raise
            except network_errors() as e:
                if not again or self.closed:
                    unknown = "" if method == "GET" else "; whether that was done isn't known"
                    raise self.unreachable(
                        f"broke the connection while it was asked to {doing} ({why(e)}){unknown}"
                    ) from e
            await asyncio.sleep(0.2)
        raise AssertionError("unreachable")

    async def send(
        self,
        method: str,
        path: str,
        doing: str,
        namespace: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        media: str = "application/json",
        accept: str = JSON,
        stream: bool = False,
    ) -> Any:
        """A response whose status is good; it is the caller's to close."""
        renew = False
        busy = refused = 0
        while True:
            try:
                return await self._try(method, path, doing, namespace, query, body, media, accept, stream, renew)
            except _Busy as e:
                busy += 1
                if busy > _BUSY_TRIES:
                    raise e.error from None
                await asyncio.sleep(e.after * random.uniform(1.0, 1.5))
            except KubernetesCredentialsError as e:
                refused += 1
                renew = e.reason == "Unauthorized" and refused <= _RENEWALS
                if not renew and not self.waking:
                    raise
                if not renew or refused > 1:
                    await asyncio.sleep(_WAKING_PAUSE)

    async def _try(
        self,
        method: str,
        path: str,
        doing: str,
        namespace: str,
        query: Mapping[str, str] | None,
        body: Any,
        media: str,
        accept: str,
        stream: bool,
        renew: bool,
    ) -> Any:
        import aiohttp

        if self.closed:
            raise self.unreachable("is no longer asked: its connections were closed, as at the end of Python")
        url = self.server + path
        given = {key: value for key, value in (query or {}).items() if value}
        if given:
            url += "?" + urlencode(given)
        headers = {"Accept": accept, "User-Agent": "kubetorch-jupyter", "Content-Type": media}
        headers.update(await self.credentials.headers(renew=renew))
        timeout = aiohttp.ClientTimeout(
            total=None if stream else _TIMEOUT,
            sock_connect=_CONNECT_TIMEOUT,
            sock_read=_WATCH_SILENCE if stream else None,
        )
        try:
            answer = await self._connections.request(method, url, headers=headers, body=body, _request_timeout=timeout)
        except network_errors() as e:
            raise self._no_connection(e, doing) from e
        response = answer.response
        status = response.status
        if 200 <= status < 300:
            return response
        async with response:
            text = (await response.read()).decode("utf-8", "replace")
        error = self.refused(status, text, doing, namespace)
        if status == 429 or (status in (500, 503, 504) and "Retry-After" in response.headers):
            raise _Busy(_retry_after(response.headers.get("Retry-After")), error)
        raise error

    # -- words -------------------------------------------------------------------------------------------------------

    def refused(self, code: int, body: str, doing: str, namespace: str) -> KubetorchError:
        """The error for a status that isn't the one hoped for."""
        login = self.credentials.kind
        if self.settings.user_name and not self.settings.in_cluster:
            login += f" of user {self.settings.user_name!r}"
        return refused(
            code, body, doing=doing, namespace=namespace, server=self.server, login=login, source=self.settings.source
        )

    def unreachable(self, what: str) -> ConnectionFailedError:
        """The error that says so of this server."""
        self._away = time.monotonic()
        where = self.settings.source
        if self.settings.context is not None:
            where += f", context {self.settings.context!r}"
        return ConnectionFailedError(f"the API server {self.server} ({where}) {what}", url=self.server)

    def _no_connection(self, error: BaseException, doing: str) -> ConnectionFailedError:
        import aiohttp

        if isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)):
            return self.unreachable(
                f"can't be trusted, or doesn't take our certificate ({why(error)}). Perhaps the kubeconfig is of a "
                "cluster that has been made anew: log in to it again"
            )
        if isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError):
            return self.unreachable(
                f"can't be reached through the proxy {self.settings.proxy or 'of $HTTPS_PROXY'} ({why(error)})"
            )
        if isinstance(error, aiohttp.ClientConnectorError | TimeoutError):
            return self.unreachable(
                f"can't be reached ({why(error)}). Is the cluster running (a local one may have to be started: "
                "minikube, kind), the VPN up, and this the right context? kt.config.context names another"
            )
        return self.unreachable(f"broke the connection while it was asked to {doing} ({why(error)})")


def _connections(settings: kubeconfig.Settings, credentials: Credentials) -> Any:
    from kubernetes.aio.client.configuration import Configuration
    from kubernetes.aio.client.rest import RESTClientObject

    configuration = Configuration(host=settings.server, proxy=settings.proxy, verify_ssl=settings.verify)
    configuration.tls_server_name = settings.server_name
    connections = RESTClientObject(configuration)
    if credentials.tls is not None:
        connections.ssl_context = credentials.tls
    return connections


def network_errors() -> tuple[type[BaseException], ...]:
    """What the official client raises when the network does something."""
    import aiohttp

    # Some of ours are OSErrors, too; they are raised outside of what this is used for.
    return (aiohttp.ClientError, OSError, asyncio.TimeoutError)


def why(error: BaseException) -> str:
    """What the socket said."""
    inner = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    if isinstance(inner, socket.gaierror):
        return f"its name is not known here: {inner.strerror}"
    if isinstance(inner, TimeoutError):
        return (
            f"no answer within {_CONNECT_TIMEOUT:g} s" if "onnect" in type(error).__name__ + str(error) else "time-out"
        )
    if isinstance(inner, ssl.SSLError):
        return getattr(inner, "verify_message", "") or inner.reason or str(inner)
    if isinstance(inner, OSError) and inner.errno is not None:
        return os.strerror(inner.errno) if inner.errno > 0 else str(inner)
    return str(inner) or type(inner).__name__


def _retry_after(value: str | None) -> float:
    try:
        return min(float(value or 1), 10.0)
    except ValueError:
        return 1.0


async def lines(response: Any) -> AsyncIterator[bytes]:
    """The lines of a stream, however long; one that is cut off at the end is left out."""
    rest: list[bytes] = []
    async for chunk in response.content.iter_any():
        *lines, last = chunk.split(b"\n")
        for line in lines:
            whole = b"".join((*rest, line))
            rest.clear()
            if whole.strip():
                yield whole
        if last:
            rest.append(last)
