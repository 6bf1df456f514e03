"""The document's examples, and what is added to each from outside: a preamble for its open names, and a check.

The examples themselves are run unchanged but for one address, that of the data set, which becomes a server on loopback.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

__all__ = ["COMPLETE", "EXAMPLES", "Example", "dataset_server"]

DOCUMENT = Path(__file__).parent / "async.md"
DATASET = "https://api.example.com/dataset"

#: The names that more than one example leaves open.
_PREAMBLE = """
import asyncio
import kubetorch as kt

url = {url!r}
config = {{"rate": 0.5}}
arg1, arg2 = 20, 22
model = {{"weights": [1, 2]}}

def process_data(x=0):
    return ("processed", x)

def train_model(epochs=1):
    return ("trained", epochs)

def evaluate_model(x=0):
    return ("evaluated", x)

class MyClass:
    def __init__(self, config):
        self.config = config
    def rate(self):
        return self.config["rate"]

def my_function(a, b):
    return a + b

def slow_process(n):
    import time
    time.sleep(0.5)
    return n * n

async def fetch(address):
    import aiohttp
    async with aiohttp.ClientSession() as session:
        async with session.get(address) as response:
            return await response.json()
"""


@dataclass(frozen=True)
class Example:
    """One example of the document: its code as it stands there, and what goes before and after it."""

    name: str
    code: str
    before: str
    after: str

    def preamble(self, url: str) -> str:
        return _PREAMBLE.format(url=url) + self.before

    def source(self, url: str) -> str:
        return self.code.replace(DATASET, url)


_MY_FUNCTION = 'remote_fn = kt.fn(my_function).to(kt.Compute(cpus="0.5"))\n'
_ROWS = '{"rows": [1, 2, 3]}'

#: In the order of the document: name, before, after.
_AROUND = [
    (
        "deploy_services",
        "",
        "assert len({fn1.service_name, fn2.service_name, fn3.service_name}) == 3\n"
        'assert (fn1(1), fn2(2), fn3(3)) == (("processed", 1), ("trained", 2), ("evaluated", 3))\n',
    ),
    (
        "to_async_parameters",
        "",
        # On a cluster the user's name comes before it.
        'assert remote_cls.service_name.endswith("my-service")\nassert remote_cls.rate() == 0.5\n',
    ),
    ("per_call_async", "", "assert result == 42\n"),
    ("async_property", _MY_FUNCTION, "assert result == 42\n"),
    ("run_concurrent", "", "assert results == [1, 4, 9]\n"),
    (
        "create_task",
        "train_fn = kt.fn(train_model).to(kt.Compute())\nfetch_fn = kt.fn(fetch).to(kt.Compute())\n",
        f'assert await run_workflow() == (("trained", 100), {_ROWS})\n',
    ),
    (
        "server_side",
        "",
        f"assert kt.fn(fetch_data).to(kt.Compute())(url) == {_ROWS}\n"
        "import numpy as np\n"
        "assert kt.fn(compute_heavy).to(kt.Compute())(np.arange(4)) == 14\n",
    ),
    (
        "fetch_and_process",
        "",
        f"assert kt.fn(fetch_and_process).to(kt.Compute())([url, url]) == [{_ROWS}, {_ROWS}]\n",
    ),
    # It imports torch, which is not asked for here: it is deployed, not called.
    ("cpu_bound", "", 'assert kt.fn(train_model).to(kt.Compute()).service_name.endswith("train-model")\n'),
    (
        "blocking_calls",
        "",
        f"assert kt.fn(good_example).to(kt.Compute())() == {_ROWS}\n"
        f"assert kt.fn(bad_example).to(kt.Compute())().json() == {_ROWS}\n",
    ),
    (
        "process_batch",
        'remote_fn = kt.fn(slow_process).to(kt.Compute(cpus="0.5"))\n',
        "assert await process_batch(range(4)) == [0, 1, 4, 9]\n",
    ),
    (
        "complete",
        "",
        f'assert result == {{"model": {{"loss": 0.123, "accuracy": 0.95}}, "data": {_ROWS}}}\n',
    ),
]


def _read() -> list[Example]:
    codes = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    return [Example(name, code, before, after) for code, (name, before, after) in zip(codes, _AROUND, strict=True)]


EXAMPLES = _read()
COMPLETE = EXAMPLES[-1]


class _Dataset(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = _ROWS.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def dataset_server() -> Iterator[str]:
    """Serve the data set on loopback; gives its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Dataset) as server:
        thread = Thread(target=server.serve_forever, name="dataset")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/dataset"
        finally:
            server.shutdown()
            thread.join()
