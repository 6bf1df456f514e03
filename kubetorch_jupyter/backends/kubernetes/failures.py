"""What an API server refuses, in words and as one of our errors.

``error.reason`` is always Kubernetes' own word (``"AlreadyExists"``, ``"Conflict"``, ``"Invalid"`` …), so that code can
tell them apart; the sentences are for people.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ...errors import DeployError, KubernetesCredentialsError, KubetorchError, ResourceNotAvailableError

__all__ = ["refused", "rule", "status_of"]

#: What RBAC says; other refusals (quotas, limit ranges, webhooks, Pod Security) have no such sentence.
_RBAC = re.compile(
    r'User "(?P<user>[^"]*)" cannot (?P<verb>\S+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]*)")?'
)
_ANONYMOUS = "system:anonymous"
_VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}


def status_of(body: str) -> dict[str, Any]:
    """The Status object that an error's body is, or one made of what it is instead."""
    try:
        status = json.loads(body)
        if isinstance(status, dict) and status.get("kind") == "Status":
            return status
    except ValueError:
        pass  # a proxy's page, or the API server's plain text: told as it is
    text = re.sub(r"<[^>]*>", " ", body)
    return {"message": " ".join(text.split())[:500]}


def rule(resource: str, group: str, *verbs: str) -> str:
    """The line of a Role that allows it.

    Examples
    --------
    >>> rule("jobs", "batch", "get", "create")
    '- {apiGroups: ["batch"], resources: ["jobs"], verbs: ["get", "create"]}'
    """
    quoted = ", ".join(f'"{verb}"' for verb in verbs)
    return f'- {{apiGroups: ["{group}"], resources: ["{resource}"], verbs: [{quoted}]}}'


def refused(
    code: int, body: str, *, doing: str, namespace: str, server: str, login: str, source: str
) -> KubetorchError:
    """The error for an answer that isn't the one hoped for.

    Parameters
    ----------
    code, body
        The answer.
    doing
        What was asked for: ``"create the Job train-1"``.
    namespace, server
        Where.
    login
        The kind of credentials, for people.
    source
        Where they stand.
    """
    status = status_of(body)
    said = str(status.get("message") or "").strip()
    reason = str(status.get("reason") or "") or None
    if code == 401:
        return KubernetesCredentialsError(
            f"the API server {server} doesn't accept {login} ({source}): it has expired or been revoked, or is another "
            "cluster's. Log in to the cluster again, then run the cell again",
            reason="Unauthorized",
        )
    if code == 403:
        return _forbidden(said, reason, doing, namespace, server, login, source)
    about = status.get("details") or {}
    if code == 404 and about.get("kind") == "namespaces":
        return DeployError(
            f'can\'t {doing}: there is no namespace "{about.get("name", namespace)}" at {server}. Name another with '
            "Compute(namespace=...) or kt.config.namespace, or have it made",
            reason="NamespaceNotFound",
        )
    if code == 422 or reason == "Invalid":
        return DeployError(f"can't {doing}: Kubernetes finds it invalid: {_causes(about) or said}", reason="Invalid")
    if (code == 409 and "object is being deleted" in said) or "because it is being terminated" in said:
        reason = "BeingDeleted"
    told = said or f"status {code} without a word"
    return DeployError(f"can't {doing}: the API server says: {told}", reason=reason or f"HTTP {code}")


def _forbidden(
    said: str, reason: str | None, doing: str, namespace: str, server: str, login: str, source: str
) -> KubetorchError:
    if "exceeded quota" in said:
        return ResourceNotAvailableError(
            f"can't {doing}: the quota of namespace \"{namespace}\" doesn't allow it: "
            f"{said[said.index('exceeded quota') :]}. Ask for less, end services (%kt down), or have the quota raised",
            reason="ExceededQuota",
        )
    match = _RBAC.search(said)
    if match is None:
        if not said or reason is None:
            return KubernetesCredentialsError(
                f"can't {doing}: what answers for {server} forbids it{f': {said}' if said else ''}; check your rights, "
                "and any proxy on the way",
                reason="Forbidden",
            )
        # An admission plugin or webhook: its words are all that there is to know.
        return DeployError(f"can't {doing}: {said}", reason=reason)
    if match["user"] == _ANONYMOUS:
        return KubernetesCredentialsError(
            f"the API server {server} doesn't know who we are: {source} has {login} for it. Log in to the cluster, "
            "then run the cell again",
            reason="Anonymous",
        )
    where = f'in namespace "{match["namespace"]}"' if match["namespace"] else "in the whole cluster"
    verb, resource, group = match["verb"], match["resource"], match["group"]
    line = rule(resource, group, verb)
    return KubernetesCredentialsError(
        f'can\'t {doing}: user "{match["user"]}" may not {verb} {resource} {where}. If that is the wrong namespace, '
        'name another with Compute(namespace=...) or kt.config.namespace; else ask for the role "edit" there, or for a '
        f"Role with this rule:\n  {line}",
        reason="Forbidden",
        rule=line,
    )


def _causes(details: Mapping[str, Any]) -> str:
    causes = [c for c in details.get("causes") or [] if isinstance(c, dict)]
    lines = [f"{c.get('field') or 'it'}: {c.get('message') or c.get('reason') or 'not accepted'}" for c in causes]
    return "; ".join(dict.fromkeys(lines))
