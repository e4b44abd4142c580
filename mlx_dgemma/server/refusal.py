"""What a client is told when its request cannot be answered, in the form that its protocol has for errors."""

import logging
from typing import Any

from ..errors import Mistake, NoRoom
from ..tokens.messages import MessageMistake
from .engine import Busy, Stopping

log = logging.getLogger("mlx_dgemma.server")
TOO_LONG = "context_length_exceeded"
KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """A request that is not answered. `param`: the field that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    @property
    def kind(self) -> str:
        if self.status in KINDS:
            return KINDS[self.status]
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self, path: str) -> dict[str, Any]:
        """The body of the reply, as Ollama, Anthropic or OpenAI write it, whichever `path` is of."""
        if path.startswith("/api/"):
            return {"error": self.message}
        if path.startswith("/v1/messages"):
            kind = "api_error" if self.kind == "server_error" else self.kind
            too_long = "prompt is too long: " if self.code == TOO_LONG else ""  # the words that agents look for
            return {"type": "error", "error": {"type": kind, "message": too_long + self.message}}
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def refusal(error: Exception, folder: str | None = None) -> Refusal:
    """Makes of any error what a client may see. `folder`, that of the model, is left out of its message."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, Mistake):
        text = " ".join(str(error).split())
        text = text.replace(f" in {folder}", "").replace(folder, "the model") if folder else text
        code = TOO_LONG if isinstance(error, NoRoom) else None
        return Refusal(400, text, error.where if isinstance(error, MessageMistake) else None, code)
    if isinstance(error, Busy):
        return Refusal(429, str(error), headers={"retry-after": str(error.seconds)})
    if isinstance(error, Stopping):
        return Refusal(503, "the server is being stopped")
    once = {"x-should-retry": "false"}  # clients would ask twice more
    return Refusal(500, "an error of the server: its log has the details", headers=once)
