"""Asking the Hugging Face hub whether it has a model: one HEAD request, no weights."""

from __future__ import annotations

import logging
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException

from memoria.errors import Problem

logger = logging.getLogger(__name__)


class _StayHere(urllib.request.HTTPRedirectHandler):
    """A redirect says that the file is there; to follow it would carry the token to another host."""

    def redirect_request(self, *_: object) -> None:
        return None


def hub_problem(
    model: str, where: tuple[str, ...], environ: Mapping[str, str], patience: float
) -> Problem | None:
    """None where the model is there, and where the hub does not answer in `patience` seconds."""
    endpoint = environ.get("HF_ENDPOINT") or "https://huggingface.co"
    token = environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        url = f"{endpoint}/{model}/resolve/main/config.json"
        request = urllib.request.Request(url, headers=headers, method="HEAD")
        with urllib.request.build_opener(_StayHere).open(request, timeout=patience):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        gated = error.headers.get("X-Error-Code") == "GatedRepo"
        if gated or error.code == 403:
            return Problem(
                f"model `{model}` is gated: its licence must be accepted on its page",
                where,
                "accept it there, then set HF_TOKEN"
                if not token
                else "HF_TOKEN's account has not accepted it",
            )
        if error.code in (401, 404) and error.headers.get("X-Error-Code") != "EntryNotFound":
            return Problem(
                f"model `{model}` is not on the hub, or it is private",
                where,
                "check the name; a private model needs HF_TOKEN; a directory is written as `./model`",
            )
    except (OSError, ValueError, HTTPException) as error:
        logger.info("the hub could not be asked for %s: %s", model, error)
    return None
