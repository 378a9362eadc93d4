"""Fetches in processes of their own, so many at once, and each failure as a diagnosis."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from memoria.text import size_text
from memoria.vllm.diagnosis import Diagnosis
from memoria.vllm.facts import FetchProgress
from memoria.vllm.failures import Retry
from memoria.vllm.fetch.repository import Repository, is_here, is_offline

AT_ONCE = 3
RATE_OVER, RATE_FROM = 5.0, 1.0  # seconds
LINE = 2**20  # bytes, at most

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


class Fetcher:
    """Two engines with the same model share its download: the second waits, and finds it."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._locks: dict[Repository, asyncio.Lock] = {}

    async def fetch(
        self,
        wanted: Sequence[Repository],
        environ: Mapping[str, str],
        on_progress: Callable[[FetchProgress], None],
    ) -> FetchProgress:
        """Wait until all that an engine loads is in the cache; returns what has come. Its process ends when
        it is cancelled. Raises `FetchError`."""
        async with self._locks.setdefault(wanted[0], asyncio.Lock()), self._places:
            if all(map(is_here, wanted)):
                return FetchProgress(0, 0)
            return await _fetch(wanted, environ, on_progress)


def is_complete(wanted: Sequence[Repository], environ: Mapping[str, str]) -> bool:
    """Whether there is nothing to fetch, or it must not be. Reads the disk."""
    return is_offline(environ) or all(map(is_here, wanted))


async def _fetch(
    wanted: Sequence[Repository], environ: Mapping[str, str], on_progress: Callable[[FetchProgress], None]
) -> FetchProgress:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "memoria.vllm.fetch.child"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # memoria's own libraries, whatever the engine's settings say
        env={**environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONSAFEPATH": "1"},
        start_new_session=True,  # Ctrl-C is memoria's
        limit=LINE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    try:
        process.stdin.write(json.dumps({"repositories": [asdict(one) for one in wanted]}).encode() + b"\n")
        meter, failure = Meter(), None
        async for line in process.stdout:
            said = json.loads(line)
            if "failure" in said:
                failure = said
            else:
                on_progress(meter.read(said, time.monotonic()))
        code = await process.wait()
        if failure is not None:
            raise fetch_error(failure["failure"], failure["values"], environ)
        if code != 0:
            last = (await errors).decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {code}"]
            raise fetch_error("other", {"model": wanted[0].model, "text": last[0][:200]}, environ)
        return meter.read({"done": meter.total}, time.monotonic())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        errors.cancel()


class Meter:
    """Bytes, and their rate over the last seconds. What an earlier fetch had left is no part of the rate."""

    def __init__(self) -> None:
        self.total = self._done = self._resumed = 0
        self._seen: deque[tuple[float, int]] = deque()

    def read(self, said: Mapping[str, int], now: float) -> FetchProgress:
        self.total = said.get("total", self.total)
        self._done = said.get("done", self._done)
        self._resumed += said.get("resumed", 0)
        self._seen.append((now, self._done))
        while len(self._seen) > 2 and now - self._seen[0][0] > RATE_OVER:
            self._seen.popleft()
        before, passed = self._seen[0][1], now - self._seen[0][0]
        rate = (self._done - before) / passed if passed >= RATE_FROM else None
        return FetchProgress(min(self._done + self._resumed, self.total), self.total, rate or None)


def fetch_error(slug: str, values: Mapping[str, Any], environ: Mapping[str, str]) -> FetchError:
    cause, hint, retry = FAILURES.get(slug, FAILURES["other"])
    endpoint = environ.get("HF_ENDPOINT") or "https://huggingface.co"
    shown = {"model": "?", "text": "", "endpoint": endpoint.rstrip("/"), **values}
    for key in ("need", "free"):
        if isinstance(size := shown.get(key), int):
            shown[key] = size_text(size)
    shown["need"], shown["revision"] = shown.get("need") or "more", shown.get("revision") or "main"
    return FetchError(slug, Diagnosis(cause.format_map(shown), hint.format_map(shown), retry, "hub"))
