"""``%kt asyncio``: the running loop entered again, by the package that loses nothing with this ipykernel."""

from __future__ import annotations

from .harness import Kernel

LOAD = "%load_ext kubetorch_jupyter\nimport asyncio"

#: A comm that keeps what it is sent in ``got``.
LISTEN = """
from comm import get_comm_manager
got = []
get_comm_manager().register_target("listen", lambda comm, _: comm.on_msg(lambda m: got.append(m["content"]["data"])))
"""


def test_nested_loops_lose_nothing(kernel: Kernel) -> None:
    kernel.run(LOAD)
    assert kernel.run("%kt asyncio").stdout == "asyncio.run works in cells, by a loop in a helper thread\n"
    failed = kernel.begin("loop = asyncio.get_running_loop()\nloop.run_until_complete(asyncio.sleep(0))")
    assert "already running" in str(failed.wait().error)  # what it is for
    package = "nest_asyncio lets" if kernel_of(kernel) < 7 else "nest_asyncio2 lets"
    assert package in kernel.run("%kt asyncio nest").stdout
    assert package in kernel.run("%kt asyncio").stdout
    kernel.run("def f(x): return x + 1\nf = kt.fn(f).to(kt.Compute(), stream_logs=False)")
    every = "f(1), await f.aio(2), loop.run_until_complete(f.aio(3)), asyncio.run(f.aio(4))"
    assert kernel.run(every).result == "(2, 3, 4, 5)"
    # Cells and messages that come while a nested run is under way.
    kernel.run(LISTEN)
    kernel.open_comm("listen", "ours")
    cells = [
        kernel.begin(f"print('begun')\nloop.run_until_complete(asyncio.sleep(0.2, {number}))") for number in range(3)
    ]
    # With ipykernel 7.3 a message in that moment may, seldom, leave the kernel waiting for ever: docs/roadmap.md.
    version = kernel.run("print(__import__('ipykernel').__version__)").stdout
    messages = [] if version.startswith("7.3.") else [0, 1, 2]
    for number, cell in enumerate(cells):
        cell.wait_text("begun")
        if number in messages:
            kernel.send_comm("ours", {"n": number})
    assert [cell.wait().ok().result for cell in cells] == ["0", "1", "2"]
    assert kernel.run("[data['n'] for data in got]").result == str(messages)
    stopped = kernel.begin("print('begun')\nloop.run_until_complete(asyncio.sleep(30))", stop_on_error=False)
    stopped.wait_text("begun")
    kernel.rest()
    kernel.interrupt()
    assert stopped.wait(10).reply["ename"] == "KeyboardInterrupt"  # type: ignore[index]
    assert kernel.run(every).result == "(2, 3, 4, 5)"
    assert "✓ asyncio" in kernel.run("%kt doctor").displays[-1]["text/plain"]
    own = kernel.begin("%kt asyncio own", stop_on_error=False).wait()
    assert "can't be taken back; restart the kernel" in own.stderr


def test_the_doctor_sees_what_loses_cells(kernel: Kernel) -> None:
    kernel.run(f"{LOAD}\nimport nest_asyncio\nnest_asyncio.apply()")
    report = kernel.run("%kt doctor").displays[-1]["text/plain"]
    told = kernel.run("%kt asyncio nest").stdout
    if kernel_of(kernel) < 7:
        assert "✓ asyncio" in report
        assert told == "nest_asyncio lets the running loop be entered again\n"
    else:
        assert "✗ asyncio" in report
        for text in (report, told):
            assert "it loses cells and widget messages" in text


def kernel_of(kernel: Kernel) -> int:
    return int(kernel.run("print(__import__('ipykernel').version_info[0])").stdout)
