"""Through an HTTP proxy (CONNECT), where the way to the API server needs one."""

from __future__ import annotations

import asyncio
import base64
import socket
from urllib.parse import unquote, urlsplit

from ..errors import ConnectionFailedError

__all__ = ["proxy_headers", "tunnel"]

#: The longest answer of a proxy, in bytes.
_ANSWER = 16 << 10


def proxy_headers(proxy: str) -> dict[str, str]:
    """What tells the proxy who we are, if its address does.

    Examples
    --------
    >>> proxy_headers("http://me:secret@proxy:3128")
    {'Proxy-Authorization': 'Basic bWU6c2VjcmV0'}
    """
    parts = urlsplit(proxy)
    if not parts.username:
        return {}
    both = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(both.encode()).decode()}


async def tunnel(proxy: str, host: str, port: int) -> socket.socket:
    """A socket that the proxy has connected to ``host``.

    Raises
    ------
    OSError
        When the proxy can't be reached, or doesn't do it.
    """
    parts = urlsplit(proxy)
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(parts.hostname or "", parts.port or 80, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        lines += [f"{name}: {value}" for name, value in proxy_headers(proxy).items()]
        await loop.sock_sendall(sock, ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        answer = b""
        while b"\r\n\r\n" not in answer:
            # To the last byte of the answer and not beyond: what follows is the tunnel's. (A TLS server, which is all
            # that is behind one, doesn't speak first.)
            data = await loop.sock_recv(sock, 4096)
            answer += data
            if not data or len(answer) > _ANSWER:
                raise ConnectionFailedError(f"the proxy {parts.hostname} closed the connection", url=host)
        first = answer.split(b"\r\n", 1)[0].decode("latin-1")
        if first.split(" ")[1:2] != ["200"]:
            raise ConnectionFailedError(f"the proxy {parts.hostname} doesn't connect us to {target}: {first}", url=host)
        return sock
    except BaseException:
        sock.close()
        raise
