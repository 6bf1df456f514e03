from __future__ import annotations

import lzma
import os
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pod_server import codefile
from pod_server.codefile import LIMIT, CodeFile, CodeFileError, missing, pack, unpack

META = {"version": "1", "worker": "2", "kind": "fn", "deployed_at": 1000.5}


@settings(deadline=None)
@given(st.lists(st.binary(max_size=10_000), max_size=5), st.dictionaries(st.text(), st.integers()))
def test_what_goes_in_comes_out(buffers: list[bytes], meta: dict[str, int]) -> None:
    data = pack(meta, buffers)
    assert data is not None
    assert unpack(data) == CodeFile(meta, buffers, None)
    whole = pack(meta, buffers, None)
    assert whole is not None
    assert unpack(whole) == CodeFile(meta, buffers, None)


def test_code_is_compressed_and_what_cannot_be_is_not() -> None:
    text = b"def f(x): return x + 1\n" * 10_000
    packed = pack(META, [text])
    assert packed is not None
    assert len(packed) < len(text) / 50
    noise = os.urandom(100_000)
    packed = pack(META, [noise])
    assert packed is not None
    assert len(packed) < len(noise) + 300


def test_the_limit_is_that_of_the_file() -> None:
    assert pack(META, [os.urandom(LIMIT)]) is None
    assert pack(META, [memoryview(bytes(codefile._HOPELESS + 1))]) is None
    fits = pack(META, [os.urandom(LIMIT - 1000)])
    assert fits is not None
    assert len(fits) <= LIMIT


def test_what_has_no_room_is_not_compressed_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 30 MB that would take 15 s, at each deploy."""
    fed = 0

    class Counting:
        def __init__(self, preset: int) -> None:
            self._real = lzma.LZMACompressor(preset=preset)

        def compress(self, data: bytes) -> bytes:
            nonlocal fed
            fed += len(data)
            return self._real.compress(data)

    monkeypatch.setattr(codefile, "lzma", SimpleNamespace(LZMACompressor=Counting))
    assert pack(META, [os.urandom(30 << 20)]) is None
    assert LIMIT < fed < 4 * LIMIT


def test_a_file_says_that_its_code_had_no_room() -> None:
    found = unpack(missing(META, 123))
    assert (found.meta, found.buffers, found.missing) == (META, [], 123)
    assert found.deployed_at == 1000.5


@pytest.mark.parametrize("buffers", [[b"abc"], [b"def f(): pass\n" * 1000, b"", os.urandom(50)]])
def test_every_cut_and_every_changed_byte_is_noticed(buffers: list[bytes]) -> None:
    data = pack(META, buffers)
    assert data is not None
    for n in range(len(data)):
        with pytest.raises(CodeFileError):
            unpack(data[:n])
        changed = bytearray(data)
        changed[n] ^= 0x41
        try:
            found = unpack(bytes(changed))
        except CodeFileError:
            continue
        # The one byte that nothing depends on is which kind it is: code without its buffers is not code.
        assert n == 8
        assert found.missing is not None
    with pytest.raises(CodeFileError):
        unpack(data + b"x")


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_refused_by_name(data: bytes) -> None:
    for text in (data, b"KTCODE1\n" + data):
        with pytest.raises(CodeFileError):
            unpack(text)


def test_a_body_may_not_grow_without_end() -> None:
    """A head that says less than what comes out of the compressed body is not believed."""
    data = pack(META, [bytes(20 << 20)])
    assert data is not None
    head = list(codefile._HEAD.unpack_from(data, 8))
    head[3] = 1000
    lying = data[:8] + codefile._HEAD.pack(*head) + data[8 + codefile._HEAD.size :]
    with pytest.raises(CodeFileError):
        unpack(lying)
