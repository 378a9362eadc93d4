"""vLLM's servers in containers: `docker run`, and the services of a compose file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from memoria.config.environment import read_variables
from memoria.config.file import read_text, shown
from memoria.config.model import ConfigPath
from memoria.config.report import Report
from memoria.config.yaml import Document, Scalar, parse
from memoria.errors import ConfigError, Problem, UsageError
from memoria.init.draft import DraftEngine, LeftOut, Published
from memoria.init.serve_line import ASSIGNMENT, NO_MODEL, Mount, Place, Translator, served
from memoria.init.shell import commands

DOCKER = frozenset({"docker", "podman", "nerdctl"})
# Options of `docker run` without a value.
_SWITCHES = frozenset(
    {
        *("--detach", "--disable-content-trust", "--init", "--interactive", "--no-healthcheck", "--quiet"),
        *(
            "--oom-kill-disable",
            "--privileged",
            "--publish-all",
            "--read-only",
            "--rm",
            "--sig-proxy",
            "--tty",
        ),
        *("-P", "-q"),
    }
)
_SHORT_SWITCHES = re.compile(r"-[dit]+")
_LONG = {"-e": "--env", "-v": "--volume", "-p": "--publish"}
_GPUS = re.compile(r"device=([\w,/-]+)")
_PUBLISHED = re.compile(
    r"(?:(?P<host>\[[^\]]*\]|[^:]*):)?(?:(?P<port>\d+)(?:-\d+)?:)?(?P<inner>\d+)(?:-\d+)?(?:/\w+)?"
)
_CONTAINER_SHELL = re.compile(r"(?:.*/)?(?:ba|da|z)?sh")
# Variables in an `env_file` that are vLLM's; the others are for other services.
_OF_VLLM = re.compile(
    r"(VLLM|HF|HUGGING|HUGGINGFACE|CUDA|NVIDIA|NCCL|TORCH|PYTORCH|OMP|TRANSFORMERS|TRITON|FLASHINFER)_?\w*"
    r"|\w+_(PROXY|proxy)"
)

_NO_CONTAINER = "there is no container: engines are processes of this machine"
_REASONS: Mapping[str, str] = {
    "build": "vLLM comes from `memoria setup`",
    "container_name": "the engine's name takes its place",
    "depends_on": "engines start in the file's order, one at a time on the GPU",
    "extra_hosts": _NO_CONTAINER,
    "healthcheck": "memoria checks by itself that an engine answers and makes progress",
    "logging": "`memoria logs` keeps and rotates the engines' logs; `log` bounds them",
    "networks": "clients reach every engine at `listen`",
    "profiles": "every engine of the file runs; leave it out, or write `on_demand: true`",
    "replicas": "one engine serves a model: raise its `max_num_seqs`",
    "restart": "memoria restarts an engine that dies or hangs; `restart` has the delays",
    "scale": "one engine serves a model: raise its `max_num_seqs`",
    "secrets": "name the file's content in the environment, or in a `.env` beside memoria.yaml",
    "stop_grace_period": "`timeouts: {drain: ..., stop: ...}`",
    "ulimits": "the limits of memoria's own user, or of its systemd unit",
    "user": "engines belong to the user of memoria",
}
_READ = frozenset(
    {"command", "entrypoint", "environment", "env_file", "gpus", "image", "ports", "volumes", "deploy"}
)
_NOT_SET = "it is not set, and was taken as blank"
_ROUTER = "memoria routes by itself: clients talk to `listen`"
_OWN_ROUTER = frozenset({"VLLM_EMBED_URL", "VLLM_GEN_URL"})


def from_docker(words: Sequence[str], folder: Path, translator: Translator) -> DraftEngine | None:
    """`words` begin with `docker run`, or with what goes before. Raises `UsageError` without an image."""
    options, rest = _docker_options(list(words))
    if not rest:
        raise UsageError("`docker run` names no image", hint="paste the whole command")
    image, arguments = rest[0], rest[1:]
    env: dict[str, str | None] = {}
    for text in options.pop("--env", ()):
        name, equals, value = text.partition("=")
        env[name] = value if equals else None
    place = Place(
        name=next(iter(options.pop("--name", ())), ""),
        source="docker run",
        folder=folder,
        environ=translator.environ,
        env=env,
        mounts=tuple(_mounts(options.pop("--volume", ()))),
        gpus=tuple(gpu for text in options.pop("--gpus", ()) for gpu in _gpus(text)),
        published=_published(options.pop("--publish", ())),
        in_container=True,
    )
    entrypoint = [word for text in options.pop("--entrypoint", ()) for word in shlex.split(text)]
    if options:
        translator.leave_out(place, " ".join(f"`{name}`" for name in options), _NO_CONTAINER)
    found = _server_words(entrypoint, arguments, image, env)
    if found is None:
        translator.leave_out(place, f"`{image}`", "it starts no vLLM server that can be recognized")
        return None
    return translator.engine(found, place)


def _docker_options(words: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The options of `docker run`, by their long names, and what follows them."""
    options: dict[str, list[str]] = {}
    rest = words[words.index("run") + 1 :]
    while rest and rest[0].startswith("-"):
        name, equals, value = rest.pop(0).partition("=")
        name = _LONG.get(name, name)
        if not name.startswith("--") and _LONG.get(name[:2]):
            name, equals, value = _LONG[name[:2]], "=", name[2:] + equals + value
        if name not in _SWITCHES and not _SHORT_SWITCHES.fullmatch(name) and not equals and rest:
            value = rest.pop(0)
        options.setdefault(name, []).append(value)
    return options, rest


def from_compose(
    path: Path, environ: Mapping[str, str], translator: Translator
) -> tuple[list[DraftEngine], Published | None]:
    """The engines, and where clients have reached the router of memoria's predecessor, if it is there. Raises
    `ConfigError` with every problem of the file."""
    report, name = Report(), shown(path)
    dotenv = path.with_name(".env")
    variables = read_variables(environ, dotenv, shown(dotenv), report)
    document = parse(read_text(path), name, variables, report)
    report.raise_errors()
    services = document.get("services")
    if not isinstance(services, dict):
        services = {}
    found = [
        _Service(service, document, path, report.unset, translator)
        for service, node in services.items()
        if isinstance(node, dict)
    ]
    engines = [service.engine() for service in found]
    if not any(service.runs_vllm for service in found):
        raise ConfigError(
            Problem(
                f"no service of {name} runs vLLM",
                (f"{name}  services: {', '.join(services) or 'none'}",),
                "a service counts whose image is vLLM's, or whose command has `vllm serve`",
            )
        )
    if not any(engines):
        why = {NO_MODEL: "", _NOT_SET: "  {what} is not set"}
        where = tuple(
            one.where + why[one.why].format(what=one.what) for one in translator.left_out if one.why in why
        )
        hint = "write `--model NAME` into its `command`"
        raise ConfigError(Problem(f"no vLLM service of {name} names a model", where, hint))
    router = next((service.published for service in found if service.is_own_router), None)
    return [engine for engine in engines if engine is not None], router


class _Service:
    """One service of a compose file."""

    def __init__(
        self,
        name: str,
        document: Document,
        path: Path,
        unset: Mapping[ConfigPath, tuple[str, ...]],
        translator: Translator,
    ) -> None:
        self.name, self._path = ("services", name), path
        self._document, self._translator = document, translator
        self._unset = unset
        node = document.get(*self.name)
        assert isinstance(node, dict)
        self._node = node
        self._own: dict[str, str | None] = dict(_environment(node.get("environment")))
        self.published = _published(_texts(node.get("ports")))
        image = self._text("image")
        self._words = _server_words(
            _words(node.get("entrypoint")), _words(node.get("command")), image, self._own
        )
        self.runs_vllm = self._words is not None
        self.is_own_router = not self.runs_vllm and bool(_OWN_ROUTER & self._own.keys())

    def _text(self, key: str) -> str:
        node = self._node.get(key)
        return str(node) if isinstance(node, Scalar) else ""

    def _where(self, path: ConfigPath) -> str:
        whole = (*self.name, *path)
        while whole and whole not in self._document.marks:
            whole = whole[:-1]
        mark = self._document.marks.get(whole)
        return f"{mark.file}:{mark.line}  {self.name[1]}" if mark else self.name[1]

    def engine(self) -> DraftEngine | None:
        """None if it runs no vLLM, which is said."""
        place = Place(
            name=self.name[1],
            source=f"{shown(self._path)}, {self.name[1]}",
            folder=self._path.absolute().parent,
            environ=self._translator.environ,
            env={**self._from_files(), **self._own},
            mounts=tuple(_mounts(_texts(self._node.get("volumes")))),
            gpus=tuple(self._gpus()),
            published=self.published,
            in_container=True,
            where=self._where,
        )
        leave_out = self._translator.leave_out
        if self._words is None:
            why = _ROUTER if self.is_own_router else "it runs no vLLM: keep it where it is"
            leave_out(place, "the service", why)
            return None
        for path, names in self._unset.items():
            if path[:2] == self.name:
                leave_out(place, ", ".join(f"`${name}`" for name in names), _NOT_SET, path[2:])
        engine = self._translator.engine(self._words, place, ("command",))
        for key in self._node:
            if key not in _READ:
                leave_out(place, f"`{key}`", _REASONS.get(key, _NO_CONTAINER), (key,))
        tag = self._text("image").rpartition(":")[2]
        if re.fullmatch(r"v\d+\.\d+(\.\d+)?(\.post\d+)?", tag):
            leave_out(place, f"version {tag}", f"`memoria setup --vllm {tag[1:]}` installs it", ("image",))
        deploy = self._node.get("deploy")
        for key in deploy if isinstance(deploy, dict) else ():
            if key != "resources":
                leave_out(place, f"`deploy.{key}`", _REASONS.get(key, _NO_CONTAINER), ("deploy", key))
        return engine

    def _gpus(self) -> Iterator[str]:
        yield from _gpus(self._text("gpus"))
        devices = self._document.get(*self.name, "deploy", "resources", "reservations", "devices")
        if devices is None:
            devices = self._node.get("gpus")
        for device in devices if isinstance(devices, list) else ():
            yield from _texts(device.get("device_ids")) if isinstance(device, dict) else ()

    def _from_files(self) -> dict[str, str | None]:
        """Of `env_file`, what is vLLM's. `.env` itself is read beside memoria.yaml, too."""
        found: dict[str, str | None] = {}
        node = self._node.get("env_file")
        for entry in node if isinstance(node, list) else [node]:
            text = entry.get("path") if isinstance(entry, dict) else entry
            if not isinstance(text, str):
                continue
            file = self._path.absolute().parent / text
            if not file.is_file():
                self._translator.left_out.append(
                    LeftOut(self._where(("env_file",)), f"`{text}`", "there is no such file")
                )
                continue
            read = read_variables({}, file, shown(file), Report())
            found |= {name: one.value for name, one in read.items() if _OF_VLLM.fullmatch(name)}
        return found


def _server_words(
    entrypoint: Sequence[str], command: Sequence[str], image: str, env: Mapping[str, str | None]
) -> list[str] | None:
    """The words of a container's vLLM server, without the program; None if it runs none."""
    words = [*entrypoint, *command]
    if (found := served(words)) is not None:
        return found[1]
    for index, word in enumerate(words[:-1]):
        if index and word in ("-c", "-lc", "-ec", "-ic") and _CONTAINER_SHELL.fullmatch(words[index - 1]):
            known = {name: value for name, value in env.items() if value is not None}
            inner = (served(one) for one in commands(words[index + 1], known))
            return next((one[1] for one in inner if one is not None), None)
    repository = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
    if entrypoint or not ("vllm" in repository or "/vllm/" in image or image.startswith("vllm/")):
        return None
    if "router" in repository or "stack" in repository:
        return None
    return list(command[1:] if command[:1] == ["serve"] else command)


def _words(node: Any) -> list[str]:
    """Of `command` or `entrypoint`: a list, or text that is split as by a shell."""
    if isinstance(node, list):
        return [str(item) for item in node if isinstance(item, str)]
    if not isinstance(node, str):
        return []
    try:
        return shlex.split(node.replace("\\\n", " "))
    except ValueError as error:
        raise ConfigError(
            Problem(f"a `command` cannot be read: {str(error).lower()}", (), "close every quote")
        ) from error


def _texts(node: Any) -> list[str]:
    """The items of a list; mappings as the short form has them."""
    if isinstance(node, str):
        return [str(node)]
    found: list[str] = []
    for item in node if isinstance(node, list) else ():
        if isinstance(item, dict):
            if "published" in item or ("target" in item and "source" not in item):
                parts = (item.get("host_ip"), item.get("published"), item.get("target"))
                found.append(":".join(str(part) for part in parts if part is not None))
            else:
                found.append(f"{item.get('source', '')}:{item.get('target', '')}")
        elif isinstance(item, str):
            found.append(str(item))
    return found


def _environment(node: Any) -> Iterator[tuple[str, str | None]]:
    if isinstance(node, dict):
        yield from ((str(name), None if value is None else str(value)) for name, value in node.items())
    for item in node if isinstance(node, list) else ():
        if isinstance(item, str):
            match = ASSIGNMENT.fullmatch(item)
            yield (match[1], match[2]) if match else (str(item), None)


def _mounts(texts: Sequence[str]) -> Iterator[Mount]:
    for text in texts:
        parts = text.split(":")
        if len(parts) > 1 and parts[1].startswith("/"):
            yield Mount(parts[0], parts[1])


def _published(texts: Sequence[str]) -> Published | None:
    """The first port that the host answers."""
    for text in texts:
        match = _PUBLISHED.fullmatch(text)
        if match is None:
            continue
        host, port = match["host"], match["port"]
        if port is None and host and host.isdecimal():  # HOST_PORT:PORT has no address
            host, port = None, host
        if port is not None:
            host = (host or "").strip("[]")
            return Published("" if host in ("0.0.0.0", "::") else host, int(port))
    return None


def _gpus(text: str) -> list[str]:
    match = _GPUS.search(text)
    return match[1].split(",") if match else []
