"""Whether the Hugging Face hub has a model: one HEAD request, no weights.

With the standard library: `huggingface_hub` takes 0.4 s to import, of the two seconds that a check may wait,
and takes tokens and mirrors from memoria's environment, not from the engine's.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException

from memoria.config.paths import hub_token_file
from memoria.errors import Problem


class HubSilentError(Exception):
    """The hub gave no usable answer; the text is the reason."""


class _StayHere(urllib.request.HTTPRedirectHandler):
    """A redirect means that the file exists; following it would send the token to another host."""

    def redirect_request(self, *_: object) -> None:
        return None


def hub_token(environ: Mapping[str, str]) -> str | None:
    """The token of an engine with this environment (huggingface_hub/utils/_auth.py). Raises `OSError` if the
    token's file exists and cannot be read."""
    if token := environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN"):
        return _clean(token)
    try:
        return _clean(hub_token_file(environ).read_text(encoding="utf-8", errors="replace"))
    except (FileNotFoundError, NotADirectoryError):
        return None


def hub_problem(
    model: str, where: tuple[str, ...], environ: Mapping[str, str], patience: float
) -> Problem | None:
    """None if the model is there. Raises `HubSilentError` if the hub does not answer within `patience`
    seconds, or with an error of its own, and `OSError` as `hub_token` does."""
    endpoint = environ.get("HF_ENDPOINT") or "https://huggingface.co"
    token = hub_token(environ)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        url = f"{endpoint}/{model}/resolve/main/config.json"
        request = urllib.request.Request(url, headers=headers, method="HEAD")
        with urllib.request.build_opener(_StayHere).open(request, timeout=patience):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return _answer(error.code, error.headers.get("X-Error-Code"), model, where, has_token=bool(token))
    except (OSError, ValueError, HTTPException) as error:
        raise HubSilentError(f"it cannot be reached: {_reason(error)}") from error


def _answer(
    status: int, code: str | None, model: str, where: tuple[str, ...], *, has_token: bool
) -> Problem | None:
    if code == "EntryNotFound" or 300 <= status < 400:
        return None
    if code == "GatedRepo" or status == 403:
        return Problem(
            f"model `{model}` is gated: its licence must be accepted on its page",
            where,
            "the token's account has not accepted it"
            if has_token
            else "accept it there, then set HF_TOKEN or run `hf auth login`",
        )
    if status == 401 and has_token and code is None:  # also for public models
        raise HubSilentError("it rejects the token (HF_TOKEN, or that of `hf auth login`)")
    if status in (401, 404):
        return Problem(
            f"model `{model}` is not on the hub, or it is private",
            where,
            "check the name; a private model needs HF_TOKEN or `hf auth login`; "
            "a directory is written as `./model`",
        )
    raise HubSilentError(f"it answered {status}")


def _clean(token: str) -> str | None:
    return "".join(token.split()) or None


def _reason(error: Exception) -> str:
    """The cause; a `URLError` puts it in brackets."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
