"""Configuration files for tests, and what the loader says of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from memoria.config.load import load
from memoria.config.model import Config
from memoria.errors import ConfigError, Problem

ENGINE = "model: org/name, gpu_memory_utilization: 0.5"
NO_VARIABLES: Mapping[str, str] = {"HOME": "/home/user"}


class ConfigFolder:
    """A folder with a memoria.yaml; tests run in it, so that problems name the file as a person would."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "memoria.yaml"
        self.dotenv = folder / ".env"

    def load(self, text: str, environ: Mapping[str, str] = NO_VARIABLES) -> Config:
        self.file.write_text(text, encoding="utf-8")
        return load(self.file, environ)

    def engine(self, keys: str, environ: Mapping[str, str] = NO_VARIABLES) -> Config:
        """One engine `a` with `keys` (flow style) beside the two that it must have."""
        return self.load(f"engines:\n  a: {{{ENGINE}, {keys}}}\n", environ)

    def problems(self, text: str, environ: Mapping[str, str] = NO_VARIABLES) -> list[Problem]:
        with pytest.raises(ConfigError) as caught:
            self.load(text, environ)
        return list(caught.value.problems)

    def problem(self, text: str, environ: Mapping[str, str] = NO_VARIABLES) -> Problem:
        """The only one there is."""
        (problem,) = self.problems(text, environ)
        return problem

    def engine_problem(self, keys: str, environ: Mapping[str, str] = NO_VARIABLES) -> Problem:
        return self.problem(f"engines:\n  a: {{{ENGINE}, {keys}}}\n", environ)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigFolder:
    monkeypatch.chdir(tmp_path)
    return ConfigFolder(tmp_path)
