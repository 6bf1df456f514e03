"""Why an image isn't there, by the words of the registry and of the container runtime."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ....errors import ImagePullError
from ....progress import Phase
from .finding import Diagnosis, Facts, curable, fatal
from .objects import Raw, latest, message_of, one_line, short

__all__ = ["PULLING", "missing_image", "pulling"]

#: What a container waits with when its image is in the way.
PULLING = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)

#: Asked first: a message may quote the answer of a proxy that says more than one thing.
_PASSING = re.compile(
    r"toomanyrequests|too many requests|\b(?:429|5\d\d) [A-Z]|status(?: code)?:? (?:429|5\d\d)\b|timeout|timed out|"
    r"deadline exceeded|connection re(?:fused|set)|no such host|no route to host|network is unreachable|"
    r"temporary failure|server misbehaving|unexpected EOF|: EOF\b|no space left|QPS exceeded|context canceled|"
    r"broken pipe|x509|certificate|TLS handshake",
    re.IGNORECASE,
)
_ABSENT = re.compile(r"not found|manifest unknown|name unknown|NAME_UNKNOWN|\b404\b|no such image", re.IGNORECASE)
_REFUSED = re.compile(
    r"unauthorized|access denied|\bdenied\b|forbidden|\b40[13]\b|insufficient_scope|authentication required|"
    r"no basic auth credentials|authorization failed",
    re.IGNORECASE,
)
_PLATFORM = re.compile(r"no match(?:ing manifest)? for (?:platform|[a-z]+/)", re.IGNORECASE)
_NAME = re.compile(r"invalid reference format|invalid image name|couldn't parse image|failed to parse", re.IGNORECASE)
_SECRETS = re.compile(r"image pull secrets \(([^)]+)\)")
#: What the runtime puts around the registry's own words.
_WRAPPING = re.compile(r"^(?:.*?(?:rpc error: code = \w+ desc = |failed to resolve (?:reference|image) ))+")


def missing_image(facts: Facts, pod: Raw, status: Raw, events: Sequence[Raw]) -> Diagnosis:
    """What is to be said of a container that waits with a reason of `PULLING`.

    Parameters
    ----------
    facts
        Of the deploy.
    pod
        Its pod.
    status
        The container's.
    events
        Of the pod.
    """
    waiting: Raw = (status.get("state") or {}).get("waiting") or {}
    reason, image = str(waiting.get("reason")), str(status.get("image") or "")
    words = _words(waiting, events, image)
    # A name may contain any word: only what is said about it counts.
    bare = words.replace(f'"{image}"', "").replace(image, "") if image else words
    what = f'can\'t have its image "{image}": {_brief(words, image)}'

    def forever(todo: str) -> Diagnosis:
        return fatal(facts, "image", reason, ImagePullError, what, todo, phase=Phase.IMAGE)

    if reason == "InvalidImageName" or _NAME.search(bare):
        return forever("The name is not one of an image: write it as registry/repository:tag")
    if reason == "ErrImageNeverPull":
        return forever(
            'With image_pull_policy="Never" the image must be on the node already: load it there, or use "IfNotPresent"'
        )
    if not _PASSING.search(bare):
        # Docker Hub and others say "denied" of what isn't there, so that nobody learns what is.
        if _REFUSED.search(bare):
            if lacking := _lacking_secrets(events):
                where = f" in namespace {facts.namespace}" if facts.namespace else ""
                return forever(
                    f"The pod names the pull secret {lacking}, which isn't there: create it{where} with 'kubectl "
                    "create secret docker-registry', or name another in imagePullSecrets"
                )
            if named := _pull_secrets(pod):
                return forever(
                    f"The registry doesn't give it to whom the pull secret {named} stands for, or has no such image: "
                    "check the name, and that the secret is there and is for this registry"
                )
            return forever(
                "The registry doesn't give it to this cluster, or has no such image: check the name; for a private one "
                "give the pods a pull secret, by kt.Compute(service_template=...) with imagePullSecrets, or on their "
                "service account"
            )
        if _PLATFORM.search(bare):
            return forever("There is no such image for the processor of this cluster's nodes: use one that is")
        if _ABSENT.search(bare):
            return forever("Check the image's name and tag, and that it has been pushed where the cluster's nodes pull")
    return curable(
        "image",
        reason,
        ImagePullError,
        what,
        "Check that the cluster's nodes reach the registry, or use an image that they have",
        phase=Phase.IMAGE,
        detail=_brief(words, image),
    )


def _pull_secrets(pod: Raw) -> str:
    return ", ".join(str(each.get("name")) for each in (pod.get("spec") or {}).get("imagePullSecrets") or ())


def _lacking_secrets(events: Sequence[Raw]) -> str:
    """The pull secrets of the pod that the kubelet hasn't found; empty where it has found all."""
    last = latest(events, "FailedToRetrieveImagePullSecret")
    found = _SECRETS.search(message_of(last)) if last is not None else None
    return found[1] if found is not None else ""


def pulling(events: Sequence[Raw]) -> Diagnosis | None:
    """That an image is on its way, if the last word about images says so."""
    last = latest(events, "Pulling", "Pulled", "Failed", "BackOff")
    if last is None or last.get("reason") != "Pulling":
        return None
    return Diagnosis(Phase.IMAGE, short(one_line(message_of(last)).removeprefix("Pulling ").replace("image ", "")))


def _words(waiting: Raw, events: Sequence[Raw], image: str) -> str:
    """The registry's words: while the kubelet backs off, older ones repeat them in an event only."""
    words = str(waiting.get("message") or "")
    if waiting.get("reason") == "ImagePullBackOff" and "ErrImagePull:" not in words:
        failures = [e for e in events if image in message_of(e) and "Failed to pull" in message_of(e)]
        last = latest(failures, "Failed")
        words = message_of(last) if last is not None else words
    return one_line(words)


def _brief(words: str, image: str) -> str:
    """The registry's own answer, without what the runtime and the kubelet put around it.

    Examples
    --------
    >>> _brief('rpc error: code = NotFound desc = failed to pull and unpack image "a/b:c": failed to resolve reference '
    ...        '"a/b:c": a/b:c: not found', "a/b:c")
    'not found'
    """
    brief = _WRAPPING.sub("", words)
    for name in (f'"{image}": ', f"{image}: "):
        if image and name in brief:
            brief = brief.rpartition(name)[2]
    # In the short form of an image's name its registry is not written.
    brief = re.sub(r'^"[^"]*": ', "", brief)
    brief = re.sub(r"^[\w.-]+(?::\d+)?/\S+: (?=\S)", "", brief)
    return short(brief or words)
