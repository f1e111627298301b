"""What the API server's refusals mean and what to do about them. Pure."""

from collections.abc import Mapping
from typing import Any

from sheaf_operator.cluster.kubernetes.resources import Resource
from sheaf_operator.cluster.protocol import ClusterError

LONGEST = 500
_ROLES = {"get", "list", "watch", "create", "update", "patch", "delete"}


class ApiError(ClusterError):
    """The API server refused a call; `status` is the HTTP status, `reason` its CamelCase word."""

    def __init__(self, status: int, reason: str, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message, retry_after=retry_after, passing=status in (409, 429) or status >= 500)
        self.status, self.reason = status, reason


class UnreachableError(ClusterError):
    """The API server did not answer; whether the call had an effect is not known."""


def refusal(
    status: int, answer: Mapping[str, Any], headers: Mapping[str, str], verb: str, resource: Resource, name: str
) -> ApiError:
    """The error for an answer that is none of 2xx.

    Args:
        status: HTTP status.
        answer: the Status object in the body; empty where there was none.
        headers: of the answer.
        verb: the verb as Roles name it.
        resource: what the call was about.
        name: of the object, or empty.
    """
    reason = str(answer.get("reason") or "")
    said = " ".join(str(answer.get("message") or "no message").split())[:LONGEST]
    what = f"{verb} {resource.plural}{f' {name}' if name else ''}"
    return ApiError(status, reason, _words(status, reason, said, what, verb, resource), retry_after=_pause(headers))


def _words(status: int, reason: str, said: str, what: str, verb: str, resource: Resource) -> str:
    if status == 403 and "quota" in said:
        return f"{what}: {said}; raise the ResourceQuota of the namespace or declare fewer replicas"
    if status == 403 and "being terminated" in said:
        return f"{what}: the namespace is being deleted"
    if status == 403 and verb in _ROLES and "cannot " in said:
        where = "Role" if resource.namespaced else "ClusterRole"
        kind = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
        return f"{what}: the operator's {where} lacks the verb {verb} on {kind}; grant it there ({said})"
    mends = {
        401: "the API server does not accept the operator's credentials; renew its token or kubeconfig",
        403: "an admission policy refuses it; change the policy or what it refuses",
        404: "it is not there; are the CustomResourceDefinitions of this version installed?",
        409: "somebody changed it meanwhile; it is looked at again",
        422: "the API server finds it invalid; change the named field of the Model or of the operator's pod settings",
        429: "the API server asks for fewer calls; it is tried again later",
    }
    mend = mends.get(status, "the API server has trouble; it is tried again" if status >= 500 else "")
    return f"{what}: {status} {reason}: {said}{f'; {mend}' if mend else ''}"


def _pause(headers: Mapping[str, str]) -> float:
    text = headers.get("Retry-After", "")
    return float(min(int(text), 60)) if text.isdecimal() else 0.0
