"""Why the Job controller can't make a pod: quotas, policies, and what the pod names and isn't there."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ....errors import PodContainerError, ResourceNotAvailableError
from ....progress import Phase
from .finding import Diagnosis, Facts, curable, fatal
from .objects import Raw, event_time, latest, message_of, one_line, quantity, short
from .resources import never, out_of_range, over_default_limit, unsaid

__all__ = ["refused_pods"]

_HEAD = re.compile(
    r'^Error creating: (?:(?:admission webhook|pods?) "[^"]*" (?:is )?(?:forbidden|invalid): )?', re.IGNORECASE
)
_QUOTA = re.compile(r"exceeded quota: (\S+), requested: (.*?), used: (.*?), limited: (.*)")
_UNSAID = re.compile(r"failed quota: (\S+?): must specify (.*)")
_SECURITY = re.compile(r'violates PodSecurity "([^":]+)(?::[^"]*)?"')
_ACCOUNT = re.compile(r'serviceaccount "([^"]+)" not found', re.IGNORECASE)
_PRIORITY = re.compile(r"no PriorityClass with name (\S+) was found")
_POLICY = re.compile(
    r"""admission webhook "([^"]+)" denied the request: (.*)|"""
    r"""ValidatingAdmissionPolicy '([^']+)'(?: with binding '[^']*')? denied request: (.*)"""
)
_PASSING = re.compile(
    r"internal error|failed calling webhook|timeout|timed out|deadline exceeded|connection refused|etcdserver|"
    r"the object has been modified|too many requests|unauthorized$|"
    r"status unknown for quota|no API token found",
    re.IGNORECASE,
)


def refused_pods(facts: Facts, job: Raw | None, events: Sequence[Raw]) -> Diagnosis | None:
    """What the Job's events say of pods that couldn't be made, unless one has been made since.

    Parameters
    ----------
    facts, job
        Of the deploy.
    events
        Of the Job.
    """
    last = latest(events, "FailedCreate")
    if last is None:
        return None
    made = latest(events, "SuccessfulCreate")
    if made is not None and event_time(made) > event_time(last):
        return None
    words = one_line(message_of(last))
    brief = _HEAD.sub("", words)
    if found := _QUOTA.search(words):
        return _over_quota(facts, *found.groups())
    if found := _UNSAID.search(words):
        return unsaid(facts, job, found[1], found[2])
    if found := _SECURITY.search(words):
        what = f"is refused by the pod security policy of its namespace: {short(brief)}"
        todo = (
            f"The namespace has the label pod-security.kubernetes.io/enforce={found[1]}: leave out what it forbids "
            "(run_as_root, parts of service_template, host paths), or use another namespace"
        )
        return fatal(facts, "policy", "PodSecurity", PodContainerError, what, todo, phase=Phase.SCHEDULING)
    if found := _ACCOUNT.search(words):
        what = f'needs the service account "{found[1]}", which isn\'t there ({short(brief)})'
        todo = "Create it, or name another with kt.Compute(service_account_name=...)"
        return fatal(facts, "account", "ServiceAccount", PodContainerError, what, todo, phase=Phase.SCHEDULING)
    if found := _PRIORITY.search(words):
        what = f'needs the priority class "{found[1]}", which this cluster hasn\'t'
        todo = "See 'kubectl get priorityclasses', and name one of them with kt.Compute(priority_class_name=...)"
        return fatal(facts, "priority", "PriorityClass", PodContainerError, what, todo, phase=Phase.SCHEDULING)
    if (limits := out_of_range(facts, job, words) or over_default_limit(facts, job, words)) is not None:
        return limits
    if found := _POLICY.search(words):
        name, why = found[1] or found[3], found[2] or found[4]
        what = f'is refused by a policy of this cluster, "{name}": {short(why)}'
        todo = "Do what it says, or ask whoever runs the cluster"
        return fatal(facts, "policy", "AdmissionPolicy", PodContainerError, what, todo, phase=Phase.SCHEDULING)
    if "is being terminated" in words:
        what = f"gets no pod: {short(brief)}"
        return fatal(
            facts, "namespace", "Terminating", PodContainerError, what, "Use another namespace", phase=Phase.SCHEDULING
        )
    what = f"gets no pod from its Job: {short(brief)}"
    if _PASSING.search(words):
        return curable("create", "FailedCreate", PodContainerError, what, phase=Phase.SCHEDULING, detail=brief)
    todo = "Change what the message names: it comes from the kt.Compute, most often from service_template"
    return fatal(facts, "create", "FailedCreate", PodContainerError, what, todo, phase=Phase.SCHEDULING)


def _over_quota(facts: Facts, quota: str, requested: str, used: str, limited: str) -> Diagnosis:
    words = f'quota "{quota}" of its namespace: requested {requested}; used {used}; limited to {limited}'
    if facts.quota_held:
        what = f"waits until its last revision gives back what the quota counts ({words})"
        return curable("quota", "ExceededQuota", ResourceNotAvailableError, what, phase=Phase.SCHEDULING, detail=what)
    asked, most = _amounts(requested), _amounts(limited)
    alone = sorted(name for name, number in asked.items() if number > most.get(name, number))
    if alone:
        todo = f"One pod alone asks for more {' and '.join(alone)} than the quota has: ask for less"
    else:
        todo = "Ask for less or for fewer replicas, or end something that runs there: %kt services shows what does"
    what = f"is over the {words}"
    return never(facts, "quota", "ExceededQuota", what, todo)


def _amounts(text: str) -> dict[str, float]:
    """``"cpu=2,memory=1Gi"`` as numbers."""
    pairs = (pair.partition("=") for pair in text.split(","))
    return {name.strip(): quantity(value.strip()) for name, _, value in pairs}
