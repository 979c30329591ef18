"""What a client is told when a request cannot be answered: one sentence, in OpenAI's form of an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

LONGEST_MESSAGE = 2000  # characters; an input is never repeated at length
TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.REQUEST_TIMEOUT: "timeout_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.INTERNAL_SERVER_ERROR: "server_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "server_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
}


@dataclass
class ApiError(Exception):
    """A request that is refused, or whose answer failed."""

    status: int
    message: str  # what is wrong, and what is allowed
    code: str | None = None
    param: str | None = None  # the field at fault
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict:
        message = self.message if len(self.message) <= LONGEST_MESSAGE else f"{self.message[:LONGEST_MESSAGE - 3]}..."
        kind = TYPES.get(HTTPStatus(self.status), "invalid_request_error")
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


def unknown_model(name: str, served: Sequence[str]) -> ApiError:
    there = f"this one is: {served[0]}" if len(served) == 1 else f"these are: {', '.join(served)}"
    return ApiError(404, f"the model {name[:60]!r} is not served here; {there}", "model_not_found", "model")


def bad(param: str | None, message: str, code: str | None = "invalid_value") -> ApiError:
    """Status 400: the client can mend it."""
    return ApiError(HTTPStatus.BAD_REQUEST, message, code, param)


def draining() -> ApiError:
    return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "the server is shutting down and takes no new requests", "draining",
                    headers={"Retry-After": "5"})


def fault(identifier: str) -> ApiError:
    """Status 500: a fault of ours, which the log has under this identifier."""
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR,
                    f"the server failed on this request; its log has the reason under {identifier}", "internal_error")


def timed_out(seconds: float) -> ApiError:
    return ApiError(HTTPStatus.GATEWAY_TIMEOUT, f"the answer took longer than {seconds:g} s (--request-timeout)",
                    "request_timeout")
