"""Payloads that are too large for a frame: streamed between HTTP and files that the worker maps.

The files lie in tmpfs where there is one with room, else in the service directory. An upload is only read when its
call has been announced (so its length is known), and a file is only given out under a name that a RESULT or ITEM
mentioned.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .faults import Violation
from .handover import FILE_HEADER, Handover

__all__ = ["MAX_BYTES", "BulkStore", "Upload", "parse_lens"]

_log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Lengths on the wire are 32 bits, and so is the sum.
MAX_BYTES = 4 * 1024**3 - 1
#: Left free in tmpfs, for the worker's results and for everybody else.
_SPARE = 64 << 20
#: What is read and sent at once; httptools is slow with memoryviews, and with less than this.
_PIECE = 1 << 20
#: Seconds that an upload waits for its CALL to arrive on the session.
_PATIENCE = 10.0


def parse_lens(meta: dict[str, Any]) -> int:
    """The sum of a bulk frame's ``lens``.

    Raises
    ------
    Violation
        When they are no list of lengths.

    Examples
    --------
    >>> parse_lens({"lens": [10, 0, 5]})
    15
    """
    lens = meta.get("lens")
    if not isinstance(lens, list) or not all(type(n) is int and n >= 0 for n in lens):
        raise Violation("a frame with a bulk payload has no valid lens")
    return sum(lens)


class Upload:
    """A payload that is expected, or coming.

    Parameters
    ----------
    total
        Its bytes.
    done
        Told of the file when everything is there.
    failed
        Told of an ``error`` object when it can't be.
    """

    __slots__ = ("done", "failed", "total", "turn")

    def __init__(self, total: int, done: Callable[[str], None], failed: Callable[[dict[str, Any]], None]) -> None:
        self.total = total
        self.done = done
        self.failed = failed
        #: A newer attempt to send it takes over from an older one, whose connection may be a black hole.
        self.turn = 0


class BulkStore:
    """The service's bulk directory.

    Parameters
    ----------
    service_dir
        The service directory; ``bulk`` in it leads to the files.
    bulk_dir
        Where they shall be; None: the best place there is.
    name
        The service's, for the directory's name.
    """

    def __init__(self, service_dir: str, bulk_dir: str | None, name: str) -> None:
        self._service_dir = os.path.realpath(service_dir)
        self._spill = os.path.join(self._service_dir, "spill")
        link = os.path.join(self._service_dir, "bulk")
        if bulk_dir is None and os.access("/dev/shm", os.W_OK | os.X_OK):
            bulk_dir = tempfile.mkdtemp(prefix=f"kt-{name}-", dir="/dev/shm")
        if bulk_dir is None or os.path.abspath(bulk_dir) == link:
            bulk_dir = link
            os.makedirs(link, mode=0o700, exist_ok=True)
        else:
            os.makedirs(bulk_dir, mode=0o700, exist_ok=True)
            os.symlink(os.path.abspath(bulk_dir), link)
        self.dir = os.path.realpath(bulk_dir)
        self._in_memory = self.dir.startswith("/dev/shm/")
        self._n = 0
        self._uploads: dict[tuple[str, int], Upload] = {}
        self._announced: dict[tuple[str, int], list[asyncio.Future[None]]] = {}
        #: What may be fetched.
        self._offered: set[str] = set()
        self.handover = Handover(self.dir)

    # -- files ---------------------------------------------------------------------------------------------------------

    def path(self, name: str) -> str:
        """The path of a bulk file."""
        return os.path.join(self.dir, name)

    def _target(self, name: str) -> str:
        """Where to write a file that `make` named: O_EXCL doesn't follow links."""
        path = self.path(name)
        return os.readlink(path) if os.path.islink(path) else path

    def _new_name(self) -> str:
        self._n += 1
        return f"f{self._n}"

    def make(self, size: int) -> str:
        """A name for a new file of so many bytes; where tmpfs has no room it leads to one in the service directory.

        Raises
        ------
        OSError
            ENOSPC when there is room for it nowhere.
        """
        name = self._new_name()
        if shutil.disk_usage(self.dir).free > size + _SPARE:
            return name
        if shutil.disk_usage(self._spill).free > size + _SPARE:
            os.symlink(os.path.join(self._spill, name), self.path(name))
            return name
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.dir)

    def duplicate(self, name: str) -> str:
        """A second name for the same file, for somebody who is going to unlink it."""
        copy = self._new_name()
        if os.path.islink(self.path(name)):
            target = os.path.join(self._spill, copy)
            os.link(os.path.join(self._spill, name), target)
            os.symlink(target, self.path(copy))
        else:
            os.link(self.path(name), self.path(copy))
        return copy

    def take(self, path: str) -> str:
        """A new name, in here, for a file of the service directory.

        Raises
        ------
        OSError
            When it isn't there, or `bulk_dir` is another file system.
        """
        name = self._new_name()
        os.link(path, self.path(name))
        return name

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        self._offered.discard(name)
        for directory in (self.dir, self._spill):
            try:
                os.unlink(os.path.join(directory, name))
            except FileNotFoundError:
                pass  # the worker unlinks what it has mapped; few files are in the second directory

    def offer(self, name: object) -> str | None:
        """Let a file of the worker's be fetched; its name, None when it is none that a worker may offer."""
        if not isinstance(name, str) or not name or "/" in name or "\0" in name:
            return None
        path = self.path(name)
        # Not through a link: that might lead to what only the front may read.
        if os.path.islink(path) or not os.path.isfile(path):
            return None
        self._offered.add(name)
        return name

    def write(self, data: bytes) -> str:
        """A new file with these bytes; its name."""
        name = self.make(len(data))
        try:
            with open(self._target(name), "xb") as f:
                f.write(data)
        except OSError:
            self.remove(name)
            raise
        return name

    def remove_unsent(self, pid: int | None) -> None:
        """Remove what a worker that has died wrote without sending the frame that names it."""
        try:
            names = os.listdir(self.dir)
        except FileNotFoundError:
            return  # the user's code has removed it all
        for name in names:
            if name.startswith(f"w{pid}-") and name not in self._offered:
                self.remove(name)

    def close(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self.dir, ignore_errors=True)

    # -- uploads -------------------------------------------------------------------------------------------------------

    def expect(self, client: str, channel: int, upload: Upload) -> None:
        """A call's payload is coming beside the session."""
        self._uploads[client, channel] = upload
        for waiting in self._announced.pop((client, channel), ()):
            if not waiting.done():
                waiting.set_result(None)

    def expects(self, client: str, channel: int) -> bool:
        """Whether a call's payload has not come (whole) yet."""
        return (client, channel) in self._uploads

    def give_up(self, client: str, channel: int) -> None:
        """The payload isn't wanted any more."""
        upload = self._uploads.pop((client, channel), None)
        if upload is not None:
            upload.turn += 1

    async def put(
        self, client: str, channel: int, receive: Receive, *, early: bool = False, given: bytes | None = None
    ) -> tuple[int, str]:
        """Take one upload; the HTTP status and a line for people.

        Parameters
        ----------
        client, channel
            Whose it is.
        receive
            Gives the request's body, as ASGI has it.
        early
            Its CALL may still come, so wait for it.
        given
            The file that the client has written it to, instead of a body.
        """
        upload = await self._announcement(client, channel) if early else self._uploads.get((client, channel))
        if upload is None and early:
            # Not 409: that is the answer when the payload is here, and its sender would take the call for complete.
            return 425, "the call that this upload belongs to has not come yet"
        if upload is None:
            return 409, "no call waits for this upload"
        upload.turn += 1
        turn = upload.turn
        if given is not None:
            name = self._new_name()
            problem = self.handover.accept(given, upload.total, name)
            if problem is not None:
                return 422, problem  # the call goes on waiting: its client can send the payload itself
            del self._uploads[client, channel]
            upload.done(name)
            return 204, ""
        try:
            name = self.make(upload.total)
            got = await self._write(name, upload, turn, receive)
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT):
                _log.warning("an upload failed: %s", e)
            if upload.turn == turn:
                self._uploads.pop((client, channel), None)
                upload.failed({"type": "PayloadTooLargeError", "message": _no_room(upload.total, self.dir, e)})
            return 507, "no room for the payload"
        if got is None or upload.turn != turn:
            # The connection broke, or a newer attempt has taken over: the call goes on waiting.
            self.remove(name)
            return 409, "the upload was given up"
        del self._uploads[client, channel]
        if got != upload.total:
            self.remove(name)
            text = f"the payload has {got} bytes, its frame announced {upload.total}"
            upload.failed({"type": "SerializationError", "message": text})
            return 400, text
        upload.done(name)
        return 204, ""

    async def _announcement(self, client: str, channel: int) -> Upload | None:
        """The upload's call, which may come a little later than the upload: they use two connections."""
        key = (client, channel)
        if key not in self._uploads:
            # Each attempt has its own: the first is given up before a second one.
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiting = self._announced.setdefault(key, [])
            waiting.append(future)
            try:
                await asyncio.wait_for(future, _PATIENCE)
            except asyncio.TimeoutError:
                pass
            finally:
                waiting.remove(future)
                if not waiting and self._announced.get(key) is waiting:
                    del self._announced[key]
        return self._uploads.get(key)

    async def _write(self, name: str, upload: Upload, turn: int, receive: Receive) -> int | None:
        """Stream a request's body into a file; the bytes written, None when the connection broke or it isn't wanted
        any more.
        """
        fd = os.open(self._target(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        got = held = 0
        pieces: list[bytes] = []
        complete = False
        # One piece is written while the next is received: to hand each little body to a thread costs more than to
        # write it.
        writing: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        writing.set_result(None)
        try:
            while upload.turn == turn and got <= upload.total:
                message = await receive()
                if message["type"] != "http.request":
                    return None
                body = message.get("body", b"")
                if body:
                    got += len(body)
                    held += len(body)
                    pieces.append(body)
                last = not message.get("more_body", False)
                if held >= _PIECE or (last and pieces):
                    await asyncio.shield(writing)
                    writing = asyncio.ensure_future(self._in_thread(_write_all, fd, pieces))
                    pieces, held = [], 0
                if last:
                    await asyncio.shield(writing)
                    complete = True
                    return got
            return got if got > upload.total else None
        finally:
            # Not while it is still written to: another file could have the number by then.
            writing.add_done_callback(functools.partial(_close, fd))
            if not complete:
                self.remove(name)

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a file operation where it can't hold up the loop; tmpfs is memory and needs no thread."""
        if self._in_memory:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(None, functools.partial(function, *args))

    # -- downloads -----------------------------------------------------------------------------------------------------

    async def get(self, key: str, range_header: bytes, send: Send, wanted: bytes | None = None) -> bool:
        """Answer a GET with a file's bytes from an offset on; False when there is no such file (nothing was sent
        then).

        A client of this machine may want the file under a name of its own instead.
        """
        if key not in self._offered:
            return False
        if wanted is not None and self.handover.lend(self.path(key), wanted):
            await send({"type": "http.response.start", "status": 204, "headers": [(FILE_HEADER, wanted)]})
            await send({"type": "http.response.body", "body": b""})
            return True
        try:
            fd = os.open(self.path(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            size = os.fstat(fd).st_size
            start = _range_start(range_header)
            if start is not None and start > size:
                headers = [(b"content-range", b"bytes */%d" % size), (b"content-length", b"0")]
                await send({"type": "http.response.start", "status": 416, "headers": headers})
                await send({"type": "http.response.body", "body": b""})
                return True
            offset = start or 0
            headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % (size - offset))]
            if start is not None and size:
                headers.append((b"content-range", b"bytes %d-%d/%d" % (offset, size - 1, size)))
            await send({"type": "http.response.start", "status": 200 if start is None else 206, "headers": headers})
            while size - offset > _PIECE:
                data = await self._in_thread(os.pread, fd, _PIECE, offset)
                if not data:
                    raise OSError(errno.EIO, "the file became shorter", key)
                offset += len(data)
                await send({"type": "http.response.body", "body": data, "more_body": True})
            data = await self._in_thread(os.pread, fd, size - offset, offset)
            await send({"type": "http.response.body", "body": data})
        finally:
            os.close(fd)
        return True


def _range_start(header: bytes) -> int | None:
    """The N of ``bytes=N-``; None for anything else, which then gets the whole."""
    unit, _, rest = header.partition(b"=")
    start, dash, end = rest.strip().partition(b"-")
    if unit.strip() != b"bytes" or not dash or end or not start.isdigit() or len(start) > 15:
        return None
    return int(start)


def _write_all(fd: int, pieces: list[bytes]) -> None:
    for piece in pieces:
        view = memoryview(piece)
        while view:
            view = view[os.write(fd, view) :]


def _close(fd: int, written: asyncio.Future[Any]) -> None:
    os.close(fd)
    if not written.cancelled() and (error := written.exception()) is not None:
        _log.debug("the last piece of an upload could not be written", exc_info=error)


def _no_room(size: int, directory: str, error: OSError) -> str:
    return (
        f"there is no room for a payload of {size} bytes in {directory} of the pod ({error.strerror}); "
        "send less at once, or free memory or disk there"
    )
