"""How the process that talks to the hub is started, and what its failures mean."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from memoria.text import size_text
from memoria.vllm.certificates import with_certificates
from memoria.vllm.diagnosis import Diagnosis
from memoria.vllm.failures import Retry

# What went wrong: a cause, the next step, and whether it may succeed by itself. "yes": for as long as it
# takes.
FAILURES: Mapping[str, tuple[str, str, Retry]] = {
    "gated": (
        "model `{model}` is gated: its licence must be accepted on its page",
        "accept it at {endpoint}/{model}, then set HF_TOKEN or run `hf auth login`",
        "no",
    ),
    "not_found": (
        "model `{model}` is not on the hub, or it is private",
        "check the name; a private model needs HF_TOKEN or `hf auth login`; "
        "a directory is written as `./model`",
        "no",
    ),
    "revision": ("model `{model}` has no revision `{revision}`", "check `revision`", "no"),
    "no_weights": (
        "`{model}` has no weights that vLLM loads ({patterns})",
        "name a repository with safetensors, or set `load_format`",
        "no",
    ),
    "token": (
        "the hub refuses the token, or wants one",
        "renew it: HF_TOKEN, or `hf auth login`; a public model needs none",
        "no",
    ),
    "forbidden": (
        "the token may not read `{model}`",
        "request access on its page, or give a fine-grained token the right to read it",
        "no",
    ),
    "offline": (
        "model `{model}` is not in the local cache, and downloads are off (HF_HUB_OFFLINE)",
        "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE",
        "no",
    ),
    "certificate": (
        "the hub's certificate is not trusted: {text}",
        "name your company's CA bundle in SSL_CERT_FILE",
        "no",
    ),
    "permission": (
        "cannot write {folder}: {text}",
        "let memoria's user write there, or set HF_HOME to another folder",
        "no",
    ),
    "busy": ("the hub refuses more requests for now (429)", "an HF_TOKEN raises the limit", "yes"),
    "server": ("the hub answered {status}", "it is tried again; see https://status.huggingface.co", "yes"),
    "network": ("the hub cannot be reached: {text}", "check the network, HF_ENDPOINT and the proxies", "yes"),
    "disk": (
        "no room for `{model}`: {need} to come, {free} free in {folder}",
        "free some, or set HF_HOME or `download_dir` to a larger disk",
        "yes",
    ),
    "damaged": (
        "a file of `{model}` has arrived with the wrong size: {text}",
        "it is fetched again; a proxy or a mirror may have cut it",
        "limited",
    ),
    "other": ("`{model}` cannot be fetched: {text}", "try `memoria pull -v`", "limited"),
}


class FetchError(Exception):
    """`slug` names the row of `FAILURES`."""

    def __init__(self, slug: str, diagnosis: Diagnosis) -> None:
        super().__init__(diagnosis.cause)
        self.slug, self.diagnosis = slug, diagnosis


def child_command() -> tuple[str, ...]:
    return sys.executable, "-m", "memoria.vllm.fetch.child"


def child_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The engine's, with memoria's own libraries whatever it says."""
    libraries = os.pathsep.join(filter(None, sys.path))
    return {**with_certificates(environ), "PYTHONPATH": libraries, "PYTHONSAFEPATH": "1"}


def fetch_error(slug: str, values: Mapping[str, Any], environ: Mapping[str, str]) -> FetchError:
    cause, hint, retry = FAILURES.get(slug, FAILURES["other"])
    endpoint = environ.get("HF_ENDPOINT") or "https://huggingface.co"
    shown = {"model": "?", "text": "", "endpoint": endpoint.rstrip("/"), **values}
    for key in ("need", "free"):
        if isinstance(size := shown.get(key), int):
            shown[key] = size_text(size)
    shown["need"], shown["revision"] = shown.get("need") or "more", shown.get("revision") or "main"
    return FetchError(slug, Diagnosis(cause.format_map(shown), hint.format_map(shown), retry, "hub"))
