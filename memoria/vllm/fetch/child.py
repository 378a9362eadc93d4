"""Fetch repositories, as a process of its own: a download in a thread could not be ended, and
`huggingface_hub` reads its settings from the environment, which differs from engine to engine.

Or, for a plan, what the hub says of a model without fetching its weights.

Reads one JSON object from standard input; a fetch ends when that is closed, so that it does not outlive
memoria. Writes a JSON object per line: `total`, then `done` every now and then, and `resumed` for what was
there of a file, in bytes; or `failure`, the name of a row of `launch.FAILURES`, with the values of its texts.
A file that was cut goes on where it stopped.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import re
import shutil
import ssl
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import (
    HfApi,
    constants,
    errors,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils.tqdm import tqdm

from memoria.plan.checkpoint import ENDLESS, MODULES, SENTENCE, TOKENIZER, mapping
from memoria.vllm.fetch.repository import INDEX, Repository, files_to_load, is_offline, read_weight_map

BETWEEN_REPORTS = 0.25  # seconds
FILES_AT_ONCE = 4
PIECE = 2**18  # bytes; the library's 10 MiB are half a minute of a slow line, and lost when it is cut
RESUMED = 8 * 2**20  # bytes; a smaller file begins anew
LARGEST_BY_HTTP = 50 * 10**9  # bytes (huggingface_hub.constants); what is larger comes by hf_xet


_SIZES = re.compile(r"should be of size (\d+) but has size (\d+)")  # file_download.py


class Failed(Exception):
    """`slug` names a row of `launch.FAILURES`."""

    def __init__(self, slug: str, **values: Any) -> None:
        super().__init__(slug)
        self.slug, self.values = slug, values


class Report:
    """What has arrived, written from any thread."""

    def __init__(self) -> None:
        self._lock, self._done, self._said_at = threading.Lock(), 0, 0.0

    def say(self, **line: Any) -> None:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    def add(self, size: int) -> None:
        with self._lock:
            self._done += size
            if time.monotonic() - self._said_at >= BETWEEN_REPORTS:
                self._said_at = time.monotonic()
                self.say(done=self._done)


REPORT = Report()


@dataclass(frozen=True, slots=True)
class File:
    repository: Repository
    name: str
    size: int


def main() -> None:
    request = json.loads(sys.stdin.readline())
    constants.DOWNLOAD_CHUNK_SIZE = PIECE
    try:
        if "metadata" in request:
            tell(Repository(**request["metadata"]))
        else:
            fetch(
                [Repository(**{**one, "weights": tuple(one["weights"])}) for one in request["repositories"]]
            )
    except BaseException as error:
        failed = classify(error)
        REPORT.say(failure=failed.slug, values=failed.values)
        sys.stdout.flush()
        os._exit(1)  # threads that download cannot be ended
    os._exit(0)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def fetch(wanted: list[Repository]) -> None:
    if is_offline(os.environ):
        raise Failed("offline", model=wanted[0].model)
    files = [file for repository in wanted for file in _missing(repository)]
    total = sum(file.size for file in files)
    for cache in {file.repository.cache for file in files}:
        _check_disk(cache, [file for file in files if file.repository.cache == cache])
    REPORT.say(total=total)
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        for download in as_completed([pool.submit(_download, file) for file in files]):
            try:
                download.result()
            except BaseException as error:
                raise classify(error) from error  # before the pool waits for the others


def tell(repository: Repository) -> None:
    """The configuration first: the headers of many files may come too late."""
    model, revision = repository.model, repository.revision

    def read(name: str) -> Any:
        path = hf_hub_download(
            model, name, revision=revision, cache_dir=repository.cache, tqdm_class=_bar(None)
        )
        return json.loads(Path(path).read_text(encoding="utf-8"))

    def limit(name: str, key: str) -> int | None:
        with suppress(errors.EntryNotFoundError, ValueError):
            value = mapping(read(name)).get(key)
            return int(value) if isinstance(value, int | float) and 0 < value < ENDLESS else None
        return None

    def has(name: str) -> bool:
        with suppress(errors.EntryNotFoundError):
            return bool(get_hf_file_metadata(hf_hub_url(model, name, revision=revision)).etag)
        return False

    try:
        REPORT.say(config=mapping(read("config.json")))
        REPORT.say(
            tokenizer_length=limit(TOKENIZER, "model_max_length"),
            encoder_length=limit(SENTENCE, "max_seq_length"),
            pools=has(MODULES),
        )
        headers = HfApi().get_safetensors_metadata(model, revision=revision).files_metadata
    except errors.NotASafetensorsRepoError:
        return  # weights in another format: the configuration must be enough
    except Exception as error:
        raise classify(error, repository) from error
    tensors = [
        (name, info.dtype, info.shape) for file in headers.values() for name, info in file.tensors.items()
    ]
    REPORT.say(tensors=tensors)


def _missing(repository: Repository) -> Iterator[File]:
    """The files to load that the cache lacks. Raises `Failed`."""
    model, revision, cache = repository.model, repository.revision, repository.cache
    try:
        info = HfApi().model_info(model, revision=revision, files_metadata=True)
        sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
        weight_map = None
        if INDEX in sizes and repository.weights:
            weight_map = read_weight_map(
                Path(hf_hub_download(model, INDEX, revision=revision, cache_dir=cache, tqdm_class=_bar(None)))
            )
    except Exception as error:
        raise classify(error, repository) from error
    small, weights = files_to_load(sizes, repository.weights, weight_map)
    if repository.weights and not weights:
        raise Failed("no_weights", model=model, patterns=", ".join(repository.weights))
    for name in (*small, *weights):
        # by the commit: a branch may have moved since
        found = try_to_load_from_cache(model, name, cache_dir=cache, revision=info.sha)
        if not isinstance(found, str):
            yield File(repository, name, sizes[name])
    if revision is None or revision != info.sha:
        _write_ref(repository, info.sha or "")


def _write_ref(repository: Repository, commit: str) -> None:
    """The library writes it with a file; there may be none left to fetch."""
    ref = repository.folder / "refs" / (repository.revision or "main")
    if commit and (not ref.is_file() or ref.read_text(encoding="utf-8") != commit):
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit, encoding="utf-8")


def _check_disk(cache: str, files: list[File]) -> None:
    """Raises `Failed` unless there is room for what is still to come."""
    folder = Path(cache)
    while not folder.exists():
        folder = folder.parent
    begun = sum(
        part.stat().st_size
        for repository in {file.repository for file in files}
        for part in (repository.folder / "blobs").glob("*.incomplete")
    )
    need, free = sum(file.size for file in files) - begun, shutil.disk_usage(folder).free
    if need > free:
        raise Failed("disk", model=files[0].repository.model, need=need, free=free, folder=cache)


def _download(file: File) -> None:
    repository = file.repository
    try:
        if RESUMED <= file.size <= LARGEST_BY_HTTP:
            _download_blob(file)
        hf_hub_download(
            repository.model,
            file.name,
            revision=repository.revision,
            cache_dir=repository.cache,
            tqdm_class=_bar(REPORT),
        )
    except Exception as error:
        raise classify(error, repository) from error


def _download_blob(file: File) -> None:
    """Into the cache's `blobs`, from where the library links it; by itself it begins a cut file anew."""
    repository = file.repository
    url, headers = hf_hub_url(repository.model, file.name, revision=repository.revision), build_hf_headers()
    facts = get_hf_file_metadata(url)
    if not facts.etag or not facts.size:
        return
    if urlsplit(facts.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # of the hub, not of where it keeps its files
    blob = repository.folder / "blobs" / facts.etag
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{facts.etag}.incomplete")
    with part.open("ab") as out:
        fcntl.flock(out, fcntl.LOCK_EX)  # another process may fetch it, too
        if blob.exists():
            part.unlink(missing_ok=True)
            return
        begun = out.seek(0, io.SEEK_END)
        if begun > facts.size:
            begun = out.truncate(0)
        REPORT.say(resumed=begun)
        try:
            http_get(
                facts.location,
                out,
                resume_size=begun,
                headers=headers,
                expected_size=facts.size,
                tqdm_class=_bar(REPORT),
            )
        except OSError as error:
            if _is_damaged(error):
                part.unlink(missing_ok=True)
            raise
        out.flush()
        part.replace(blob)


def _bar(report: Report | None) -> Any:
    """A class for the library, which reports to tqdm."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            settings.pop("name", None)
            super().__init__(*args, **{**settings, "file": io.StringIO(), "disable": False})  # type: ignore[no-untyped-call]  # tqdm has no types

        def update(self, n: float | None = 1) -> Any:
            if report is not None:
                report.add(int(n or 0))
            return super().update(n)

    return Bar


def _is_damaged(error: BaseException) -> bool:
    return isinstance(error, OSError) and "Consistency check failed" in str(error)


def classify(error: BaseException, repository: Repository | None = None) -> Failed:
    """The first error of the chain that is known: the library wraps the network's."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    facts = {} if repository is None else {"model": repository.model, "revision": repository.revision}
    for one in chain:
        if isinstance(one, Failed):
            return one
        if found := _known(one, facts, repository):
            return found
    return Failed("other", **facts, text=_first_line(error))


def _known(error: BaseException, facts: Mapping[str, Any], repository: Repository | None) -> Failed | None:
    match error:
        case errors.GatedRepoError():
            slug = "gated"
        case errors.RevisionNotFoundError():
            slug = "revision"
        case errors.RepositoryNotFoundError() | errors.HFValidationError():
            slug = "not_found"
        case errors.HfHubHTTPError():
            status = error.response.status_code
            slugs = {401: "token", 403: "forbidden", 404: "not_found", 429: "busy"}
            return Failed(slugs.get(status, "server"), **facts, status=status)
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            return None  # stands for another one
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            folder = repository.cache if repository else ""
            return Failed("disk", **facts, need=None, free=0, folder=folder)
        case OSError(errno=errno.EACCES | errno.EPERM | errno.EROFS | errno.ENOTDIR | errno.EEXIST):
            return Failed("permission", **facts, folder=error.filename or "", text=error.strerror)
        case OSError() if _is_damaged(error):
            slug = "damaged"
        case _ if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(
            error
        ):
            slug = "certificate"
        case _ if isinstance(error, ConnectionError | TimeoutError) or _is_of_transport(error):
            slug = "network"
        case _:
            return None
    return Failed(slug, **facts, text=_first_line(error))


def _is_of_transport(error: BaseException) -> bool:
    """HTTPX's own, whichever package of it the library uses."""
    return any(kind.__name__ in ("TransportError", "InvalidURL") for kind in type(error).__mro__)


def _first_line(error: BaseException) -> str:
    if sizes := _SIZES.search(str(error)):
        return f"{sizes[2]} bytes instead of {sizes[1]}"
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


if __name__ == "__main__":
    main()
