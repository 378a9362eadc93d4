"""Whether every model exists, checked before anything is spawned: a typing error costs seconds, not a start.

A path is looked up. A hub name is looked up in the local cache, then (unless HF_HUB_OFFLINE is set) on the
hub, with one HEAD request for its config.json. What cannot be found out in time is a warning, and left to
vLLM.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from memoria.config.model import Config, EngineConfig
from memoria.config.paths import hub_cache, hub_token_file
from memoria.errors import Problem
from memoria.vllm.certificates import with_certificates
from memoria.vllm.fetch.repository import HUB_NAME, is_offline, is_set

HUB_TIMEOUT = 2.0  # seconds


@dataclass(frozen=True, slots=True)
class ModelProblems:
    """`problems`: models that are certainly missing, gated or misnamed. `unknown`: those that could not be
    checked."""

    problems: tuple[Problem, ...]
    unknown: tuple[Problem, ...]


class _UnknownError(Exception):
    """Whether the model exists could not be found out; the text says why."""


def look_for_models(config: Config, environ: Mapping[str, str]) -> ModelProblems:
    """Problems in the file's order. Blocks for `HUB_TIMEOUT` seconds at most: resolving a name has no timeout
    of its own, so a thread that takes longer is left behind."""
    problems: dict[str, Problem | None] = {}
    unknown = {engine.name: f"no answer within {HUB_TIMEOUT:g} s" for engine in config.engines}

    def look(engine: EngineConfig) -> None:
        try:
            problems[engine.name] = _problem(engine, _where(config, engine), {**environ, **engine.env})
        except _UnknownError as error:
            unknown[engine.name] = str(error)

    deadline = time.monotonic() + HUB_TIMEOUT
    threads = [threading.Thread(target=look, args=(engine,), daemon=True) for engine in config.engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    found = dict(problems)  # a thread that was left behind may still write
    return ModelProblems(
        tuple(problem for engine in config.engines if (problem := found.get(engine.name)) is not None),
        tuple(
            Problem(
                f"cannot tell whether the hub has `{engine.model}`: {unknown[engine.name]}",
                _where(config, engine),
                "it is not in the local cache, so it is fetched once the hub answers; "
                "check the network, HF_ENDPOINT and the proxies",
            )
            for engine in config.engines
            if engine.name not in found
        ),
    )


def _where(config: Config, engine: EngineConfig) -> tuple[str, ...]:
    mark = config.where("engines", engine.name, "model")
    return (f"{mark}  {engine.name}.model",) if mark else (f"{engine.name}.model",)


def _problem(engine: EngineConfig, where: tuple[str, ...], environ: Mapping[str, str]) -> Problem | None:
    """Raises `_UnknownError`."""
    try:
        if engine.model.startswith("/"):
            return _path_problem(Path(engine.model), where)
        elsewhere = not HUB_NAME.fullmatch(engine.model) or is_set(environ.get("VLLM_USE_MODELSCOPE"))
        return None if elsewhere else _hub_problem(engine.model, where, environ)
    except OSError as error:
        return Problem(
            f"model cannot be read: {error.filename}: {error.strerror}",
            where,
            "let memoria's user read it; HF_HOME is where the hub's files are",
        )


def _path_problem(path: Path, where: tuple[str, ...]) -> Problem | None:
    with suppress(FileNotFoundError, NotADirectoryError):
        path.stat()  # raises what is in the way, where `is_dir` might only be false
    if path.is_file() and path.suffix == ".gguf":
        return None
    if not path.is_dir():
        return Problem(f"model not found: {path} is not a directory", where, "check the path")
    if not _has_config(path):
        return Problem(
            f"no model in {path}: it has no config.json", where, "name the directory that holds it"
        )
    return None


def _hub_problem(model: str, where: tuple[str, ...], environ: Mapping[str, str]) -> Problem | None:
    if _cached(model, environ):
        return None
    if is_offline(environ):
        return Problem(
            f"model `{model}` is not in the local cache, and downloads are off (HF_HUB_OFFLINE)",
            where,
            "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, or download it first; "
            "a directory is written as a path (`./model`)",
        )
    token = hub_token(environ)
    url = f"{environ.get('HF_ENDPOINT') or 'https://huggingface.co'}/{model}/resolve/main/config.json"
    status, code = _head(url, token, with_certificates(environ).get("SSL_CERT_FILE"))
    if 200 <= status < 400 or code == "EntryNotFound":
        return None
    if code == "GatedRepo" or status == 403:
        return Problem(
            f"model `{model}` is gated: its licence must be accepted on its page",
            where,
            "the token's account has not accepted it"
            if token
            else "accept it there, then set HF_TOKEN or run `hf auth login`",
        )
    if status == 401 and token and code is None:  # the hub refuses a bad token for public models, too
        raise _UnknownError("it refuses the token (HF_TOKEN, or that of `hf auth login`)")
    if status in (401, 404):
        return Problem(
            f"model `{model}` is not on the hub, or it is private",
            where,
            "check the name; a private model needs HF_TOKEN or `hf auth login`; "
            "a directory is written as `./model`",
        )
    raise _UnknownError(f"it answered {status}")


def _head(url: str, token: str | None, ca_bundle: str | None) -> tuple[int, str | None]:
    """The status of a HEAD request, and the hub's own error code. Raises `_UnknownError` without an answer
    within `HUB_TIMEOUT`."""
    # HTTP and TLS take longer to import than all the rest of a check
    import ssl  # noqa: PLC0415
    import urllib.error  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415
    from http.client import HTTPException  # noqa: PLC0415

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        """A redirect means that the file exists; following it would carry the token to another host."""

        def redirect_request(self, *_: object) -> None:
            return None

    try:
        request = urllib.request.Request(
            url, headers={"Authorization": f"Bearer {token}"} if token else {}, method="HEAD"
        )
        trust = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca_bundle))
        with urllib.request.build_opener(NoRedirect, trust).open(request, timeout=HUB_TIMEOUT) as answer:
            return int(answer.status), None
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, error.headers.get("X-Error-Code")
    except (OSError, ValueError, HTTPException) as error:
        # a `URLError` prints its reason in brackets
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise _UnknownError(f"it cannot be reached: {text}") from error


def hub_token(environ: Mapping[str, str]) -> str | None:
    """The token that an engine with this environment uses (huggingface_hub/utils/_auth.py). Raises `OSError`
    for a file that exists and cannot be read."""
    token = environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN")
    if not token:
        try:
            token = hub_token_file(environ).read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None
    return "".join(token.split()) or None


def _cached(model: str, environ: Mapping[str, str]) -> bool:
    snapshots = hub_cache(environ) / f"models--{model.replace('/', '--')}" / "snapshots"
    try:
        return any(_has_config(revision) for revision in snapshots.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _has_config(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "params.json"))
