"""The check of the server's log: it sees what is ours, and not what Jupyter does to itself when a kernel ends."""

from __future__ import annotations

import pytest

from tests.browser.server_log import faults_in
from tests.local import ROOT

SHUTDOWN = "[I 2026-11-27 23:11:46.692 ServerApp] Kernel shutdown: 95f87340\n"
#: Of ipykernel 7.4: a control message came while the kernel ended.
ENDING = """\
Exception ignored in: <coroutine object Kernel.dispatch_control at 0x7f7b0c304130>
Traceback (most recent call last):
  File "/usr/lib/python3.11/warnings.py", line 537, in _warn_unawaited_coroutine
    warn(msg, category=RuntimeWarning, stacklevel=2, source=coro)
  File "/venv/lib/python3.11/site-packages/ipykernel/iostream.py", line 343, in schedule
    self._event_pipe.send(b"")
  File "zmq/backend/cython/_zmq.py", line 190, in zmq.backend.cython._zmq._check_rc
zmq.error.ZMQError: Socket operation on non-socket
"""
OURS = f"""\
Exception in callback Portal._drain()
Traceback (most recent call last):
  File "{ROOT}/kubetorch_jupyter/transport/portal.py", line 110, in _drain
    fn(*args)
KeyError: 'x'
"""
LIMIT = "[W 2026-11-27 23:11:46.692 ServerApp] IOPub message rate exceeded.\n"
#: Also Jupyter's own, which nobody has explained.
OTHER = "[E 2026-11-27 23:11:46.692 ServerApp] Uncaught exception\n" + ENDING.partition("\n")[2]
REFUSED = "[E 2026-11-27 23:11:46.692 ServerApp] 500 GET /kubetorch\n"


@pytest.mark.parametrize("log", ["", SHUTDOWN, SHUTDOWN + ENDING, ENDING + SHUTDOWN + ENDING])
def test_jupyters_own_trouble_is_none_of_ours(log: str) -> None:
    assert faults_in(log) == []


@pytest.mark.parametrize("fault", [OURS, OTHER, LIMIT, REFUSED, "Exception ignored in: something\n"])
def test_what_is_ours_is_seen_beside_it(fault: str) -> None:
    assert fault in "".join(faults_in(SHUTDOWN + fault + ENDING))
    assert fault in "".join(faults_in(ENDING + fault + SHUTDOWN))
