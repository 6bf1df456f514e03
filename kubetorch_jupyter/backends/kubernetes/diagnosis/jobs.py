"""What a Job says of itself: suspended, in a queue, failed, ended."""

from __future__ import annotations

from collections.abc import Sequence

from ....errors import PodContainerError, ResourceNotAvailableError, ServiceNotFoundError
from ....progress import Phase
from ..names import QUEUE
from .finding import Diagnosis, Facts, curable, fatal
from .objects import Raw, about, condition, event_time, message_of, name_of, one_line, short, time_of

__all__ = ["deleted", "job_trouble"]

#: So many seconds without a word of Kueue's mean that there is none.
_SILENCE = 5.0
#: A Job that its deployer makes is released long before so many seconds.
_RELEASED = 15.0


def job_trouble(facts: Facts, job: Raw, events: Sequence[Raw], now: float) -> Diagnosis | None:
    """What keeps a Job from having pods, by its own state, or None.

    Parameters
    ----------
    facts
        Of the deploy.
    job
        The revision's Job.
    events
        All that may concern it, Kueue's included.
    now
        Unix time.
    """
    meta: Raw = job.get("metadata") or {}
    if meta.get("deletionTimestamp"):
        return deleted(facts)
    for kind in ("Failed", "FailureTarget"):
        failed = condition(job, kind)
        if failed.get("status") == "True":
            words = f"{failed.get('reason')}: {short(str(failed.get('message') or ''))}"
            todo = "Look at its pods with 'kubectl describe', and deploy it again"
            what = f"can't come up, its Job has failed: {words}"
            return fatal(facts, "job", failed.get("reason"), PodContainerError, what, todo, phase=Phase.STARTING)
    for kind in ("Complete", "SuccessCriteriaMet"):
        if condition(job, kind).get("status") == "True":
            what = "has ended by itself before it was ready: its pods ended with exit code 0"
            todo = "Somebody else may have torn it down: deploy it again"
            return fatal(facts, "ended", kind, PodContainerError, what, todo, phase=Phase.STARTING)
    if (job.get("spec") or {}).get("suspend"):
        return _suspended(facts, job, events, now)
    return None


def deleted(facts: Facts) -> Diagnosis:
    """Its Job is gone, or goes."""
    what = "was deleted while it was being deployed"
    return fatal(facts, "deleted", "Deleted", ServiceNotFoundError, what, "Deploy it again", phase=Phase.SCHEDULING)


def _suspended(facts: Facts, job: Raw, events: Sequence[Raw], now: float) -> Diagnosis:
    meta: Raw = job.get("metadata") or {}
    queue = (meta.get("labels") or {}).get(QUEUE)
    if queue is None:
        since = time_of(condition(job, "Suspended").get("lastTransitionTime"))
        if since is None or now - since < _RELEASED:
            # Every Job of ours begins so, until what it owns is there.
            return Diagnosis(Phase.SCHEDULING)
        what = f"has been suspended for {now - since:.0f} s: somebody has suspended its Job, or its deployer has ended"
        hint = "Deploy it again, see who did with 'kubectl describe job'"
        return curable("suspended", "JobSuspended", PodContainerError, what, hint, phase=Phase.SCHEDULING)
    said = [event for event in events if _of_kueue(event, job)]
    pending = [event for event in said if about(event).get("kind") == "Workload"]
    last = max(pending or said, key=event_time, default=None)
    words = one_line(message_of(last)) if last is not None else ""
    created = time_of(meta.get("creationTimestamp"))
    if not said and created is not None and now - created > _SILENCE:
        words = "Kueue has not said anything of it: is it installed here, and is there a LocalQueue of that name?"
    what = f"is waiting in queue {queue}" + (f": {words}" if words else "")
    hint = f"See 'kubectl describe localqueue {queue}', ask for less with kt.Compute(...)"
    return curable(
        "queue",
        str(last.get("reason")) if last is not None else "Suspended",
        ResourceNotAvailableError,
        what,
        hint,
        phase=Phase.SCHEDULING,
        detail=what.removeprefix("is "),
    )


def _of_kueue(event: Raw, job: Raw) -> bool:
    """Whether Kueue says it, of this Job or of the Workload that it has made for it."""
    source = str((event.get("source") or {}).get("component") or event.get("reportingComponent") or "")
    what = about(event)
    if what.get("kind") == "Workload":
        return str(what.get("name") or "").startswith(f"job-{name_of(job)}-")
    return "kueue" in source and what.get("name") == name_of(job)
