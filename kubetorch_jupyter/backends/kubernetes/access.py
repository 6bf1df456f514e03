"""The way to a pod: directly from inside the cluster, else by the API server's proxy, else by a port-forward."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit
from weakref import WeakKeyDictionary

from ...errors import ConnectionFailedError, KubernetesCredentialsError, PodLostError
from ...transport.endpoint import Endpoint
from ...transport.tunnel import tunnel
from ...transport.websocket import POD_HEADER
from .client import Cluster
from .failures import rule, status_of
from .names import PORT, index_of
from .portforward import forward

__all__ = ["endpoint", "probe"]

_PROBE_TIMEOUT = 5.0
#: Seconds until an API server is asked again that has just started, and may refuse everybody.
_PAUSE = 0.3
#: Of an answer to a probe this much is read, in bytes.
_ANSWER = 64 << 10

#: For each cluster, by namespace: whether the API server's proxy may be used.
_proxies: WeakKeyDictionary[Cluster, dict[str, bool]] = WeakKeyDictionary()


async def endpoint(
    cluster: Cluster,
    namespace: str,
    service: str,
    pod: Mapping[str, Any],
    token: str,
    gone: Callable[[bool], PodLostError | None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Endpoint:
    """Where that pod's front can be reached from here; nobody need listen there yet.

    Parameters
    ----------
    cluster, namespace
        Where it runs.
    service
        The service's name.
    pod
        The pod, as the API gives it.
    token
        The service's token.
    gone
        As `Endpoint`'s.
    note
        Told, once for each cluster and namespace, when the way is not the usual one.

    Raises
    ------
    ConnectionFailedError
        When it has no address yet, or the API server can't be reached.
    KubernetesCredentialsError
        When neither the proxy nor a port-forward is allowed.
    """
    name, rank = str(pod["metadata"]["name"]), index_of(pod)
    if cluster.in_cluster:
        address = (pod.get("status") or {}).get("podIP")
        if not address:
            raise ConnectionFailedError(f'the pod {name} of service "{service}" has no address yet', service=service)
        host = f"[{address}]" if ":" in address else address
        return Endpoint(service, f"http://{host}:{PORT}", token, gone=gone, rank=rank)
    proxied = Endpoint(
        service,
        f"{cluster.server}/api/v1/namespaces/{quote(namespace)}/pods/{quote(name)}:{PORT}/proxy",
        token,
        credentials=lambda renew: cluster.headers(renew=renew),
        tls=cluster.tls(),
        tls_name=cluster.server_name,
        proxy=_proxy(cluster),
        gone=gone,
        rank=rank,
    )
    ways = _proxies.setdefault(cluster, {})
    if namespace not in ways:
        allowed = await _proxy_allowed(proxied)
        while not allowed and cluster.waking:
            await asyncio.sleep(_PAUSE)
            allowed = await _proxy_allowed(proxied)
        if allowed is None:
            return proxied  # its node may be gone; what is allowed shows at another pod
        if not allowed and namespace not in ways and note is not None:
            note("the API server's proxy is forbidden to you, so the connection goes by a port-forward")
        ways[namespace] = allowed
    if ways[namespace]:
        return proxied
    return await forward(cluster, namespace, service, pod, PORT, token, gone, proxied.proxy)


def _proxy(cluster: Cluster) -> str | None:
    """The HTTP proxy on the way to the API server: the kubeconfig's, else the environment's."""
    if cluster.proxy is not None:
        return cluster.proxy
    parts = urlsplit(cluster.server)
    found = urllib.request.getproxies().get(parts.scheme)
    if not found or urllib.request.proxy_bypass(parts.netloc) or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return found if "://" in found else f"http://{found}"


# -- probes ------------------------------------------------------------------------------------------------------------


async def probe(endpoint: Endpoint) -> str | None:
    """Why a pod's front doesn't answer there yet; None when it does.

    Raises
    ------
    KubernetesCredentialsError
        When the API server's proxy refuses us: waiting doesn't help.
    """
    try:
        status, ours, body = await _request(endpoint, "GET", "/health")
        if status == 401 and not ours and endpoint.credentials is not None:
            status, ours, body = await _request(endpoint, "GET", "/health", renew=True)
    except (OSError, asyncio.IncompleteReadError, ValueError) as e:
        return _why(e)
    if ours:
        return None if status == 200 else f"it answers with status {status}"
    said = str(status_of(body).get("message") or "").strip()
    if status == 403:
        line = rule("pods/proxy", "", "get", "create", "update")
        raise KubernetesCredentialsError(
            f'the API server\'s proxy refuses us the pod of service "{endpoint.service}" ({said}). Ask for the role '
            f'"edit" in its namespace, or for a Role with this rule:\n  {line}',
            reason="Forbidden",
            service=endpoint.service,
            rule=line,
        )
    if status == 401:
        raise KubernetesCredentialsError(
            f'the API server doesn\'t accept our credentials for the pod of service "{endpoint.service}" ({said}): '
            "log in to the cluster again",
            reason="Unauthorized",
            service=endpoint.service,
        )
    return said or f"status {status} without a word"


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError) and not error.args:
        return f"no answer within {_PROBE_TIMEOUT:g} s"
    return str(error) or type(error).__name__


async def _proxy_allowed(endpoint: Endpoint) -> bool | None:
    """Whether the proxy lets us through: with GET (sessions) and with PUT (uploads); None when nothing is answered."""
    for method in ("GET", "PUT"):
        try:
            status, ours, _ = await _request(endpoint, method, "/health")
            if status == 401 and not ours and endpoint.credentials is not None:
                status, ours, _ = await _request(endpoint, method, "/health", renew=True)
        except TimeoutError:
            return None
        except (OSError, asyncio.IncompleteReadError, ValueError) as e:
            raise ConnectionFailedError(
                f"the API server's proxy for service \"{endpoint.service}\" can't be reached ({_why(e)})",
                service=endpoint.service,
                url=endpoint.url,
            ) from e
        if status == 403 and not ours:
            return False
    return True


async def _request(endpoint: Endpoint, method: str, path: str, *, renew: bool = False) -> tuple[int, bool, str]:
    """One small request on a connection of its own: status, whether the pod itself answered, body."""
    parts = urlsplit(endpoint.url)
    secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    tls = (endpoint.tls or True) if secure else None
    name = (endpoint.tls_name or host) if secure else None
    headers = await endpoint.all_headers(renew)
    async with asyncio.timeout(_PROBE_TIMEOUT):
        if endpoint.proxy is None:
            reader, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname=name)
        else:
            sock = await tunnel(endpoint.proxy, host, port)
            reader, writer = await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=name)
        try:
            lines = [f"{method} {parts.path}{path} HTTP/1.0", f"Host: {parts.netloc}", "Content-Length: 0"]
            lines += [f"{key}: {value}" for key, value in headers.items()]
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
            head = await reader.readuntil(b"\r\n\r\n")
            first, *rest = head.decode("latin-1").split("\r\n")
            said = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in rest)}
            length = said.get("content-length", "")
            body = await reader.readexactly(min(int(length), _ANSWER)) if length else await reader.read(_ANSWER)
            return int(first.split(" ")[1]), POD_HEADER.lower() in said, body.decode("utf-8", "replace")
        finally:
            writer.transport.abort()
