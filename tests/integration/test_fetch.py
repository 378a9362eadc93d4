"""Models fetched from a hub on the loopback, with everything that can go wrong on the way."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from memoria.vllm.facts import FetchProgress
from memoria.vllm.fetch.fetcher import Fetcher, is_complete
from memoria.vllm.fetch.launch import FetchError
from memoria.vllm.fetch.repository import INDEX, Repository, repositories
from tests.fakes import until
from tests.hub import COMMIT, Hub, serving

MIB = 2**20
WEIGHTS = os.urandom(12 * MIB)
SMALL = {"config.json": b"{}", "tokenizer.json": b"{}", "README.md": b"# A model", "onnx/model.onnx": b"onnx"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        hub.files = {("main", name): content for name, content in SMALL.items()}
        hub.files["main", "model.safetensors"] = WEIGHTS
        yield hub


@pytest.fixture
def environ(hub: Hub, tmp_path: Path) -> dict[str, str]:
    home = str(tmp_path / "home")
    return {"PATH": os.environ["PATH"], "HOME": home, "HF_HOME": home, "HF_ENDPOINT": hub.address}


@pytest.fixture
def wanted(environ: dict[str, str]) -> tuple[Repository, ...]:
    return repositories("org/name", {}, environ)


async def fetch(
    wanted: tuple[Repository, ...], environ: dict[str, str], *, fetcher: Fetcher | None = None
) -> list[FetchProgress]:
    seen: list[FetchProgress] = []
    async with asyncio.timeout(60):
        seen.append(await (fetcher or Fetcher()).fetch(wanted, environ, seen.append))
    return seen


async def fails(wanted: tuple[Repository, ...], environ: dict[str, str]) -> FetchError:
    with pytest.raises(FetchError) as caught:
        await fetch(wanted, environ)
    return caught.value


def files(repository: Repository) -> dict[str, bytes]:
    folder = repository.folder / "snapshots" / COMMIT
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


async def test_only_what_vllm_loads_comes(
    hub: Hub, wanted: tuple[Repository, ...], environ: dict[str, str]
) -> None:
    assert not is_complete(wanted, environ)
    progress = await fetch(wanted, environ)
    expected = {"config.json": b"{}", "model.safetensors": WEIGHTS, "tokenizer.json": b"{}"}
    assert files(wanted[0]) == expected
    assert is_complete(wanted, environ)
    assert progress[0] == FetchProgress(0, sum(map(len, expected.values())))
    assert progress[-1].done_bytes == progress[-1].total_bytes
    assert (wanted[0].folder / "refs" / "main").read_text() == COMMIT
    assert not list((wanted[0].folder / "blobs").glob("*.incomplete"))


async def test_what_is_here_is_not_requested(
    hub: Hub, wanted: tuple[Repository, ...], environ: dict[str, str]
) -> None:
    await fetch(wanted, environ)
    hub.requests.clear()
    assert await fetch(wanted, environ) == [FetchProgress(0, 0)]
    assert hub.requests == []


async def test_the_token_of_the_engine_is_sent(
    hub: Hub, wanted: tuple[Repository, ...], environ: dict[str, str]
) -> None:
    await fetch(wanted, {**environ, "HF_TOKEN": "hf_secret"})
    assert {token for token in hub.tokens if token} == {"Bearer hf_secret"}


async def test_a_revision_and_a_folder_of_its_own(hub: Hub, environ: dict[str, str], tmp_path: Path) -> None:
    hub.files = {("v2", name): content for (_, name), content in hub.files.items()}
    args = {"revision": "v2", "download_dir": str(tmp_path / "big")}
    wanted = repositories("org/name", args, environ)
    await fetch(wanted, environ)
    assert is_complete(wanted, environ)
    assert (tmp_path / "big/models--org--name/refs/v2").read_text() == COMMIT
    in_hub = [path.name for path in (tmp_path / "home/hub").rglob("*.safetensors")]
    assert in_hub == []


async def test_shards_are_those_of_the_index(
    hub: Hub, wanted: tuple[Repository, ...], environ: dict[str, str]
) -> None:
    del hub.files["main", "model.safetensors"]
    hub.files["main", INDEX] = b'{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}'
    for name in ("a", "b", "unused"):
        hub.files["main", f"{name}.safetensors"] = name.encode() * 1000
    await fetch(wanted, environ)
    assert {name for name in files(wanted[0]) if name.endswith(".safetensors")} == {
        "a.safetensors",
        "b.safetensors",
    }


async def test_a_connection_that_is_cut_goes_on_where_it_stopped(
    hub: Hub, wanted: tuple[Repository, ...], environ: dict[str, str]
) -> None:
    hub.cuts = 2
    await fetch(wanted, environ)
    assert hub.ranges == [f"bytes={MIB}-", f"bytes={2 * MIB}-"]
    assert files(wanted[0])["model.safetensors"] == WEIGHTS


async def test_a_fetch_that_is_ended_goes_on_where_it_stopped(
    hub: Hub, wanted: tuple[Repository, ...], environ: dict[str, str]
) -> None:
    hub.open.clear()
    task = asyncio.create_task(fetch(wanted, environ))
    await asyncio.to_thread(hub.reached.wait, 30)

    def begun() -> bool:
        return any(p.stat().st_size == MIB for p in (wanted[0].folder / "blobs").glob("*.incomplete"))

    await until(begun)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_complete(wanted, environ)
    hub.open.set()
    progress = await fetch(wanted, environ)
    assert hub.ranges == [f"bytes={MIB}-"]
    assert any(MIB <= one.done_bytes < 2 * MIB for one in progress)
    assert files(wanted[0])["model.safetensors"] == WEIGHTS


@pytest.mark.parametrize(
    ("refusal", "slug"),
    [
        ((401, "GatedRepo"), "gated"),
        ((403, "GatedRepo"), "gated"),
        ((401, "RepoNotFound"), "not_found"),
        ((404, "RepoNotFound"), "not_found"),
        ((404, "RevisionNotFound"), "revision"),
        ((401, None), "token"),
        ((403, None), "forbidden"),
        ((429, None), "busy"),
        ((500, None), "server"),
        ((503, None), "server"),
    ],
)
async def test_a_refusal_is_explained(
    hub: Hub,
    wanted: tuple[Repository, ...],
    environ: dict[str, str],
    refusal: tuple[int, str | None],
    slug: str,
) -> None:
    hub.refusal = refusal
    assert (await fails(wanted, environ)).slug == slug


async def test_a_hub_that_is_not_there(wanted: tuple[Repository, ...], environ: dict[str, str]) -> None:
    error = await fails(wanted, {**environ, "HF_ENDPOINT": "http://127.0.0.1:1"})
    assert error.slug == "network"
    assert error.diagnosis.cause == "the hub cannot be reached: [Errno 111] Connection refused"


async def test_a_disk_that_is_too_small_is_found_before_anything_comes(
    hub: Hub, wanted: tuple[Repository, ...], environ: dict[str, str]
) -> None:
    hub.claims["model.safetensors"] = 2**60
    error = await fails(wanted, environ)
    assert error.slug == "disk"
    assert "1073741824.0 GiB to come" in error.diagnosis.cause
    assert hub.sent == 0


async def test_a_file_of_the_wrong_size_is_not_kept(
    hub: Hub, wanted: tuple[Repository, ...], environ: dict[str, str]
) -> None:
    hub.claims["model.safetensors"] = len(WEIGHTS) + 1
    error = await fails(wanted, environ)
    assert error.slug == "damaged"
    assert error.diagnosis.cause.endswith(f"{len(WEIGHTS)} bytes instead of {len(WEIGHTS) + 1}")
    hub.claims.clear()
    await fetch(wanted, environ)
    assert files(wanted[0])["model.safetensors"] == WEIGHTS


async def test_a_repository_without_weights_is_named(
    hub: Hub, wanted: tuple[Repository, ...], environ: dict[str, str]
) -> None:
    del hub.files["main", "model.safetensors"]
    assert (await fails(wanted, environ)).slug == "no_weights"


async def test_a_folder_that_may_not_be_written(
    wanted: tuple[Repository, ...], environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "hub").write_text("no folder")
    assert (await fails(wanted, environ)).slug == "permission"


async def test_no_more_than_the_limit_at_once_and_the_same_model_once(
    hub: Hub, environ: dict[str, str], tmp_path: Path
) -> None:
    hub.open.clear()
    fetcher = Fetcher(at_once=2)
    folders = [{**environ, "HF_HOME": str(tmp_path / name)} for name in ("a", "b", "c")]
    started: list[str] = []

    async def one(env: dict[str, str]) -> list[FetchProgress]:
        wanted = repositories("org/name", {}, env)
        seen: list[FetchProgress] = []
        seen.append(await fetcher.fetch(wanted, env, lambda _: started.append(env["HF_HOME"])))
        return seen

    async with asyncio.timeout(60):
        tasks = [asyncio.create_task(one(env)) for env in (*folders, folders[0])]
        await until(lambda: len(set(started)) == 2)
        assert set(started) == {folders[0]["HF_HOME"], folders[1]["HF_HOME"]}
        hub.open.set()
        results = await asyncio.gather(*tasks)
    assert [bool(result[-1].total_bytes) for result in results] == [True, True, True, False]
