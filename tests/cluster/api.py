"""A cluster's API as the tests see it: plain requests and plain JSON, with the rights of one kubeconfig.

It has nothing of the backend that is tested, so that what a test finds in the cluster isn't what the backend believes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.stream import stream

__all__ = ["Api", "ApiError"]

#: Every kind of object that a service is made of, by the path of its API.
KINDS = {
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "Pod": "/api/v1/namespaces/{}/pods",
    "Service": "/api/v1/namespaces/{}/services",
    "Secret": "/api/v1/namespaces/{}/secrets",
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "PersistentVolumeClaim": "/api/v1/namespaces/{}/persistentvolumeclaims",
}


class ApiError(Exception):
    """The API server's refusal; ``status`` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Api:
    """Requests with the rights of a kubeconfig.

    Parameters
    ----------
    kubeconfig
        The file; its current context counts.
    namespace
        Of what is asked for by kind; the context's, or ``default``, when it isn't given.
    """

    def __init__(self, kubeconfig: Path, namespace: str | None = None) -> None:
        self.kubeconfig = kubeconfig
        _, current = config.list_kube_config_contexts(config_file=str(kubeconfig))
        self.namespace: str = namespace or current["context"].get("namespace") or "default"
        self._client = config.new_client_from_config(config_file=str(kubeconfig))

    def request(self, method: str, path: str, body: object = None, **query: object) -> Any:
        """One request; gives the answer's JSON, raises `ApiError`."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        url, headers, data = self._client.param_serialize(
            method,
            path,
            query_params=[(name, str(value)) for name, value in query.items()],
            header_params={"Accept": "application/json", "Content-Type": kind},
            body=body,
            auth_settings=["BearerToken"],
        )[1:4]
        answer = self._client.rest_client.request(method, url, headers=headers, body=data, _request_timeout=30)
        text = (answer.read() or b"").decode()
        if answer.status >= 400:
            raise ApiError(answer.status, json.loads(text).get("message", text) if text.startswith("{") else text)
        return json.loads(text) if text else None

    def list(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """The namespace's objects of a kind of `KINDS`, those that a label selector takes."""
        answer = self.request("GET", KINDS[kind].format(self.namespace), labelSelector=selector)
        return list(answer["items"])

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """One object."""
        found: dict[str, Any] = self.request("GET", f"{KINDS[kind].format(self.namespace)}/{name}")
        return found

    def create(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """Make an object."""
        made: dict[str, Any] = self.request("POST", KINDS[kind].format(self.namespace), body)
        return made

    def delete(self, kind: str, name: str, **query: object) -> None:
        """Delete an object, and in the background what it owns; that it is gone already is fine."""
        try:
            self.request(
                "DELETE", f"{KINDS[kind].format(self.namespace)}/{name}", propagationPolicy="Background", **query
            )
        except ApiError as e:
            if e.status != 404:
                raise

    def log(self, pod: str, container: str) -> str:
        """What a container has printed."""
        api = client.CoreV1Api(self._client)
        return str(api.read_namespaced_pod_log(pod, self.namespace, container=container))

    def execute(self, pod: str, container: str, command: Sequence[str]) -> str:
        """Run a command in a container; gives its stdout, raises when it fails."""
        # The stream makes the client's requests WebSockets for good, so it gets one of its own.
        api = client.CoreV1Api(config.new_client_from_config(config_file=str(self.kubeconfig)))
        running = stream(
            api.connect_get_namespaced_pod_exec,
            pod,
            self.namespace,
            container=container,
            command=list(command),
            stdout=True,
            stderr=True,
            stdin=False,
            tty=False,
            _preload_content=False,
        )
        running.run_forever(timeout=30)
        out, err = running.read_stdout(), running.read_stderr()
        code = running.returncode
        # Its own close leaves the socket of a connection open that the other side has ended.
        running.sock.shutdown()
        if code:
            raise RuntimeError(f"{' '.join(command)!r} in {pod}: exit code {code}\n{out}{err}")
        return str(out)

    def wait(self, what: str, condition: Callable[[], Any], timeout: float, pause: float = 0.1) -> Any:
        """Ask until the condition gives something, and give that."""
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
            time.sleep(pause)
        return found
