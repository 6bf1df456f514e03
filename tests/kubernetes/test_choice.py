"""Which backend a process uses for which cluster."""

from __future__ import annotations

import pytest

from kubetorch_jupyter.backends.kubernetes.backend import kubernetes_backend
from kubetorch_jupyter.compute import Compute


def test_another_kubeconfig_in_the_environment_is_another_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/tmp/one")
    one = kubernetes_backend(Compute())
    named = kubernetes_backend(Compute(kubeconfig_path="/tmp/named"))
    assert kubernetes_backend(Compute()) is one
    monkeypatch.setenv("KUBECONFIG", "/tmp/two")
    assert kubernetes_backend(Compute()) is not one
    # What is named counts, whatever stands in the environment.
    assert kubernetes_backend(Compute(kubeconfig_path="/tmp/named")) is named
    monkeypatch.setenv("KUBECONFIG", "/tmp/one")
    assert kubernetes_backend(Compute()) is one


def test_another_namespace_is_another_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/tmp/one")
    assert kubernetes_backend(Compute(namespace="a")) is not kubernetes_backend(Compute(namespace="b"))
    monkeypatch.setenv("KT_NAMESPACE", "a")
    assert kubernetes_backend(Compute()) is kubernetes_backend(Compute(namespace="a"))
