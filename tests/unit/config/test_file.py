"""The place of a daemon can be read from its file even while that is being edited."""

from __future__ import annotations

from pathlib import Path

import pytest

from memoria.config import paths
from memoria.config.file import Place, locate
from memoria.config.load import load
from memoria.errors import ConfigError

WRITTEN = """\
runtime_dir: ${RUN:-/run}/${NAME:-here}
log:
  # where they are
  dir: ./logs

engines:
  embedding: {model: org/m, gpu_memory_utilization: 0.3}
  generation: {model: org/n, gpu_memory_utilization: 0.3}
"""


def located(folder: Path, text: str, **environ: str) -> Place:
    file = folder / "memoria.yaml"
    file.write_text(text, encoding="utf-8")
    return locate(file, {"HOME": str(folder), **environ})


def test_a_good_file_is_located_as_it_is_loaded(tmp_path: Path) -> None:
    place = located(tmp_path, WRITTEN)
    config = load(place.file, {"HOME": str(tmp_path)})
    assert (place.runtime_dir, place.log_dir) == (config.runtime_dir, config.logging.dir)
    assert place.engines == tuple(engine.name for engine in config.engines)
    assert place.admin_socket == Path("/run/here/admin.sock")


@pytest.mark.parametrize(
    "added",
    [
        "unknown_key: 1\n",
        "gpu_limit: lots\n",
        "listen: ${NOT_SET:?must be set}\n",
        "gpu_limit: 0.9\ngpu_limit: 0.8\n",
    ],
)
def test_what_is_wrong_elsewhere_does_not_matter(tmp_path: Path, added: str) -> None:
    with pytest.raises(ConfigError):
        load(located(tmp_path, WRITTEN + added).file, {"HOME": str(tmp_path)})
    assert located(tmp_path, WRITTEN + added) == located(tmp_path, WRITTEN)


@pytest.mark.parametrize("broken", ["limits: [", "  hold: {", "a: b: c", "\tx: y", "guard: 'open"])
def test_a_file_that_is_no_yaml_still_says_where(tmp_path: Path, broken: str) -> None:
    place = located(tmp_path, f"{WRITTEN}\n{broken}\n")
    assert (place.runtime_dir, place.log_dir) == (Path("/run/here"), tmp_path / "logs")
    assert place.engines in {("embedding", "generation"), ()}  # `hold` may be meant to belong to the engines
    assert located(tmp_path, f"{broken}\n{WRITTEN}").runtime_dir == Path("/run/here")


def test_variables_count_and_dotenv_too(tmp_path: Path) -> None:
    assert located(tmp_path, WRITTEN, NAME="there").runtime_dir == Path("/run/there")
    (tmp_path / ".env").write_text("NAME=of-dotenv\nthis line is wrong\n", encoding="utf-8")
    assert located(tmp_path, WRITTEN).runtime_dir == Path("/run/of-dotenv")
    assert located(tmp_path, WRITTEN, MEMORIA_RUNTIME_DIR="/run/m").runtime_dir == Path("/run/m")


@pytest.mark.parametrize("text", ["", "[1, 2]", "log: [dir]\nengines: 5\n", "{" * 1000, "runtime_dir: {}\n"])
def test_where_nothing_is_said_the_default_counts(tmp_path: Path, text: str) -> None:
    place = located(tmp_path, text)
    environ = {"HOME": str(tmp_path)}
    assert place.runtime_dir == paths.runtime_dir(None, place.file, environ)[0]
    assert place.log_dir == paths.log_dir(None, place.file, environ)[0]
    assert place.engines == ()


def test_a_file_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration file at"):
        locate(tmp_path / "other.yaml", {})
