"""The code of a service as a file: what a LOAD brought, so that a pod that comes anew can load it by itself.

The client puts one into the service's Secret, the front keeps one of its own. What is in it is not pickled here, only
carried: a meta (of the LOAD frame) and its buffers, as bytes.

::

    "KTCODE1", newline | kind | packing | stored length | length | blake2b | body
      8 bytes            u8     u8        u64             u64      16 bytes

    body, as it is or by xz: u32 length of meta | u32 number of buffers | u64 length of each | meta (JSON) | buffers
"""

from __future__ import annotations

import hashlib
import json
import lzma
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["LIMIT", "CodeFile", "CodeFileError", "missing", "pack", "unpack"]

#: The largest file that has room in a Secret, in bytes.
LIMIT = 900_000

Buffer = bytes | bytearray | memoryview

_MAGIC = b"KTCODE1\n"
_HEAD = struct.Struct("<BBQQ16s")
_COUNTS = struct.Struct("<II")
_CODE, _MISSING = 0, 1
_RAW, _XZ = 0, 1
#: Less than this is not worth packing; of more than that, packing won't make what a Secret has room for.
_SMALL = 4096
_HOPELESS = 32 << 20
_PIECE = 64 << 10
#: What a file may claim to have inside, for who unpacks it.
_MOST = 1 << 32


class CodeFileError(ValueError):
    """Bytes that are no code file, or only a part of one."""


class CodeFile(NamedTuple):
    """What is in a code file.

    ``missing`` is None, or the size in bytes of the code that had no room: then there are no buffers.
    """

    meta: dict[str, Any]
    buffers: list[bytes]
    missing: int | None = None

    @property
    def deployed_at(self) -> float:
        """When it was deployed, unix time; 0 when it doesn't say."""
        at = self.meta.get("deployed_at")
        return float(at) if isinstance(at, (int, float)) else 0.0


def pack(meta: Mapping[str, Any], buffers: Sequence[Buffer], limit: int | None = LIMIT) -> bytes | None:
    """Make a code file.

    Parameters
    ----------
    meta
        That of the LOAD frame, with ``deployed_at`` (unix time).
    buffers
        Those of the LOAD frame, all of them.
    limit
        The most bytes that it may have; None: as many as there are, and then nothing is compressed.

    Returns
    -------
    bytes or None
        None when it would be larger.

    Examples
    --------
    >>> unpack(pack({"version": "1"}, [b"abc", b""]))
    CodeFile(meta={'version': '1'}, buffers=[b'abc', b''], missing=None)
    >>> import os
    >>> pack({}, [os.urandom(LIMIT)]) is None
    True
    """
    size = sum(memoryview(b).nbytes for b in buffers)
    if limit is not None and size > _HOPELESS:
        return None
    raw_meta = json.dumps(meta, separators=(",", ":")).encode()
    lengths = [memoryview(b).nbytes for b in buffers]
    head = _COUNTS.pack(len(raw_meta), len(buffers)) + struct.pack(f"<{len(buffers)}Q", *lengths)
    body = b"".join([head, raw_meta, *buffers])
    data = _seal(_CODE, body, limit)
    return data if limit is None or len(data) <= limit else None


def missing(meta: Mapping[str, Any], size: int) -> bytes:
    """What stands in the place of code that has no room, so that a pod without it can say why.

    Examples
    --------
    >>> unpack(missing({"version": "1"}, 5_000_000)).missing
    5000000
    """
    raw_meta = json.dumps({**meta, "missing": size}, separators=(",", ":")).encode()
    return _seal(_MISSING, _COUNTS.pack(len(raw_meta), 0) + raw_meta, LIMIT)


def _seal(kind: int, body: bytes, limit: int | None) -> bytes:
    stored, packing = body, _RAW
    if limit is not None and len(body) > _SMALL:
        packed = _compress(body, min(limit, len(body)))
        if packed is not None:
            stored, packing = packed, _XZ
    return _MAGIC + _HEAD.pack(kind, packing, len(stored), len(body), _digest(stored)) + stored


def _compress(body: bytes, most: int) -> bytes | None:
    """The body by xz; None as soon as it comes to more than that: of many megabytes that is nearly all of the time."""
    compressor = lzma.LZMACompressor(preset=2)
    packed = bytearray()
    for at in range(0, len(body), _PIECE):
        packed += compressor.compress(body[at : at + _PIECE])
        if len(packed) > most:
            return None
    packed += compressor.flush()
    return bytes(packed) if len(packed) <= most else None


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def unpack(data: bytes) -> CodeFile:
    """What is in a code file.

    Raises
    ------
    CodeFileError
        When it isn't one, when a part of it is missing, or when it was changed.
    """
    start = len(_MAGIC) + _HEAD.size
    if data[: len(_MAGIC)] != _MAGIC or len(data) < start:
        raise CodeFileError("this is no code file of this version")
    kind, packing, stored, length, digest = _HEAD.unpack_from(data, len(_MAGIC))
    body = data[start:]
    if len(body) != stored:
        raise CodeFileError(f"the code file has {len(body)} bytes behind its head and should have {stored}")
    if _digest(body) != digest:
        raise CodeFileError("the code file is damaged: its content is not what it was packed with")
    if kind not in (_CODE, _MISSING) or packing not in (_RAW, _XZ) or length > _MOST:
        raise CodeFileError("the code file is of a kind that this version doesn't know")
    if packing == _XZ:
        body = _decompress(body, length)
    if len(body) != length:
        raise CodeFileError(f"the code file holds {len(body)} bytes and should hold {length}")
    meta, buffers = _parts(body)
    if kind == _CODE:
        return CodeFile(meta, buffers)
    size = meta.pop("missing", 0)
    return CodeFile(meta, [], size if type(size) is int and size >= 0 else 0)


def _decompress(data: bytes, length: int) -> bytes:
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    try:
        body = decompressor.decompress(data, max_length=length + 1)
    except lzma.LZMAError as e:
        raise CodeFileError(f"the code file can't be unpacked: {e}") from None
    if not decompressor.eof and len(body) <= length:
        raise CodeFileError("the code file can't be unpacked: a part of it is missing")
    return body


def _parts(body: bytes) -> tuple[dict[str, Any], list[bytes]]:
    try:
        meta_length, count = _COUNTS.unpack_from(body)
        at = _COUNTS.size
        lengths = struct.unpack_from(f"<{count}Q", body, at)
    except struct.error:
        raise CodeFileError("the code file is shorter than it says") from None
    at += 8 * count
    if at + meta_length + sum(lengths) != len(body):
        raise CodeFileError("the parts of the code file don't add up")
    try:
        meta = json.loads(body[at : at + meta_length])
    except (ValueError, RecursionError) as e:
        raise CodeFileError(f"the meta of the code file is not JSON: {e}") from None
    if not isinstance(meta, dict):
        raise CodeFileError("the meta of the code file is not a JSON object")
    at += meta_length
    buffers = []
    for n in lengths:
        buffers.append(body[at : at + n])
        at += n
    return meta, buffers
