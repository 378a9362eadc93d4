"""Rules between keys: ports and names are unique, `tcp` has a port, a local model exists, and the engines are
not open to a network by accident.

`check_engines` works on the tree as read, so that its problems are reported together with all others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from memoria.config.model import Address, ConfigPath, EngineKeys, adapter_names
from memoria.config.paths import exists, expand, is_local_model
from memoria.config.report import Report, key_name
from memoria.config.schema import File
from memoria.config.values import keys
from memoria.config.yaml import Document, Node

# Names that mean memoria itself.
RESERVED = {
    "memoria": "memoria's own events have this name",
    "router": "`/health` reports on memoria itself under this name",
}


def check_engines(document: Document, folder: Path, environ: Mapping[str, str], report: Report) -> None:
    ports: dict[int, ConfigPath] = {}
    with suppress(ValueError):  # reported by the schema
        ports[Address.parse(document.data.get("listen", "127.0.0.1:8200")).port] = ("listen",)
    names: dict[tuple[str, str], ConfigPath] = {}
    for path, engine in document.engines():
        if reason := RESERVED.get(path[1]):
            report.error(f"no engine can be named `{path[1]}`: {reason}", path, hint="give it another name")
        _check_port(engine, path, ports, report)
        _check_model(engine, path, folder, environ, report)
        _check_names(engine, path, _served_names(engine, folder, environ), names, report)


def check_memory(document: Document, report: Report) -> None:
    """Every engine has a fraction or a size, not both. Whether a wish can be met is up to the plan."""
    name = "gpu_memory_utilization"
    for path, engine in document.engines():
        fraction, size = engine.get(name), engine.get("gpu_memory")
        if fraction is not None and size is not None:
            report.error(
                "`gpu_memory` and `gpu_memory_utilization` exclude each other",
                (*path, "gpu_memory"),
                also=((*path, name),),
                hint="keep one of them",
            )
        misspelt = get_close_matches(name, engine.keys() - {"gpu_memory"}, n=1, cutoff=0.75)
        if fraction is None and size is None and misspelt in ([], [name]):
            report.error(
                "`gpu_memory_utilization` is missing",
                path,
                hint=f"write `{name}: 0.30`, say, or `gpu_memory: 12GiB`, or `auto` with a `want`",
            )


def check_front(file: File, report: Report, wrong: Collection[str] = ()) -> None:
    """Checks access and the latency guard, except where that depends on keys that are `wrong`, and so not as
    written."""
    if not {"listen", "keys", "open_to_network", "transport"}.intersection(wrong):
        _check_access(file, report)
    if file.tls.cert is None and file.tls.private_key is not None and not {"tls", "cert"}.intersection(wrong):
        report.error(
            "`tls` has a `key` and no `cert`",
            ("tls", "key"),
            hint="write `cert: FILE` beside it; a file of both is named as `cert` alone",
        )
    if not {"guard", "runner", "[key]"}.intersection(wrong):
        _check_guard(file, report)
    if not {"mps", "device", "compute_percent", "pinned_memory"}.intersection(wrong):
        _check_mps(file, report)
    if not {"swap", "[key]", *ON_DEMAND, *_AT_ODDS}.intersection(wrong):
        _check_on_demand(file, report)


def _check_access(file: File, report: Report) -> None:
    if not file.listen.is_loopback and file.keys is None and not file.open_to_network:
        report.error(
            f"{file.listen} can be reached from other machines, and there are no API keys",
            ("listen",),
            hint="write `keys: FILE`, with `tls` where the network is not trusted; or listen on 127.0.0.1, "
            "or write `open_to_network: true` if everyone there may use the engines",
        )
    for name, engine in file.engines.items() if file.keys is not None else ():
        if engine.transport == "tcp":
            report.error(
                "`transport: tcp` opens the engine's own port to all users of this machine, without a key",
                ("engines", name, "transport"),
                also=(("keys",),),
                hint="leave it out: memoria answers the `port` all the same, and asks for a key",
            )
    if file.keys is not None and file.open_to_network:
        report.error(
            "`open_to_network` and `keys` exclude each other",
            ("open_to_network",),
            also=(("keys",),),
            hint="keep one of them",
        )


def _check_guard(file: File, report: Report) -> None:
    guard = file.guard
    engine = file.engines.get(guard.protect) if guard else None
    if guard and (engine is None or engine.runner != "generate"):
        generating = [name for name, engine in file.engines.items() if engine.runner == "generate"]
        report.error(
            f"`protect` names `{guard.protect}`, which is no engine that generates text",
            ("guard", "protect"),
            hint=f"there is: {', '.join(generating)}" if generating else "there is none here",
        )


def _check_mps(file: File, report: Report) -> None:
    if file.mps and file.device == "cpu":
        report.error("`mps` is for GPUs", ("mps",), also=(("device",),), hint="remove one of them")
    for name, engine in file.engines.items() if not file.mps else ():
        for key in ("compute_percent", "pinned_memory"):
            if getattr(engine, key) is not None:
                report.error(
                    f"`{key}` has no effect without MPS",
                    ("engines", name, key),
                    hint="write `mps: true` at the top, or remove it",
                )


# Keys that have no meaning for an engine that is resident.
ON_DEMAND = ("on_demand", "ttl", "sleep_level", "preload", "priority")
_AT_ODDS = ("guard", "transport", "gpu_memory_utilization", "gpu_memory", "device")


def _check_on_demand(file: File, report: Report) -> None:
    if file.swap.turn < file.swap.min_awake:
        report.error(
            f"a turn of {file.swap.turn:g} s ends before `min_awake` ({file.swap.min_awake:g} s)",
            ("swap", "turn"),
            also=(("swap", "min_awake"),),
            hint="make `turn` the longer of the two",
        )
    if any(engine.on_demand for engine in file.engines.values()) and 0 < file.hold.seconds < file.swap.turn:
        report.warning(
            f"requests wait for {file.hold.seconds:g} s, another engine's turn takes {file.swap.turn:g} s: "
            "some get a 503 before their engine is awake",
            ("hold", "seconds"),
            hint="leave `hold.seconds` out, or make it longer than `swap.turn` and a start",
        )
    for name, engine in file.engines.items():
        path, defaults = ("engines", name), keys(EngineKeys)
        if not engine.on_demand:
            for key in ON_DEMAND[1:]:
                if getattr(engine, key) != defaults[key].default:
                    report.error(
                        f"`{key}` has no effect: {name} is resident",
                        (*path, key),
                        hint="write `on_demand: true`, or remove it",
                    )
            continue
        if engine.transport == "tcp":
            report.error(
                "an engine on demand cannot have `transport: tcp`: memoria would end it under clients that "
                "reach it directly",
                (*path, "transport"),
                also=((*path, "on_demand"),),
                hint="leave `transport` out; memoria answers on its `port`",
            )
        if not engine.gpu_memory_utilization and engine.gpu_memory is None:
            report.error(
                "an engine on demand needs a fraction or a size of its own",
                (*path, "gpu_memory_utilization"),
                also=((*path, "on_demand"),),
                hint="write `gpu_memory_utilization: 0.40`, say; `auto` is for residents",
            )
        if engine.sleep_level:
            _check_sleep(file, name, report)
        if file.guard is not None and file.guard.protect == name:
            report.error(
                f"the latency guard protects {name}, which would be ended for other engines",
                ("guard", "protect"),
                also=((*path, "on_demand"),),
                hint="make it resident: remove its `on_demand`",
            )


def _check_sleep(file: File, name: str, report: Report) -> None:
    """What vLLM's sleep mode does not do, or does wrong without a word."""
    engine, path = file.engines[name], ("engines", name)
    flags = dict(engine.args)

    def refuse(why: str, hint: str, *other: str) -> None:
        what = f"`sleep_level: {engine.sleep_level}` {why}"
        report.error(what, (*path, "sleep_level"), also=(other,), hint=hint)

    end, one = "write `sleep_level: none`", "write `sleep_level: 1`"
    if file.device == "cpu":
        refuse("needs a GPU: vLLM has no sleep mode on the CPU", end, "device")
    if str(flags.get("load_format")) == "ipc_cache":
        refuse(
            "cannot free weights that another process holds (`ipc_cache`)", end, *path, "args", "load_format"
        )
    if flags.get("enable_sleep_mode") is False:
        refuse("needs vLLM's sleep mode", "remove `enable_sleep_mode`", *path, "args", "enable_sleep_mode")
    if engine.sleep_level == 2 and str(flags.get("load_format")) == "dummy":
        refuse("has no weights to read again (`dummy`)", one, *path, "args", "load_format")
    if engine.sleep_level == 2:
        for flag, value in flags.items():
            if value and flag in ("enable_lora", "lora_modules"):
                refuse("loses adapters (vLLM #48337)", one, *path, "args", flag)
            if value and flag.partition(".")[0] in ("speculative_config", "spec_method", "spec_model"):
                refuse(
                    "loses the draft model's weights (vLLM #52479)",
                    one,
                    *path,
                    "args",
                    flag,
                )


def _check_port(
    engine: Mapping[str, Node], path: ConfigPath, ports: dict[int, ConfigPath], report: Report
) -> None:
    written = engine.get("port")
    here = (*path, "port")
    if engine.get("transport") == "tcp" and written is None:
        report.error("`transport: tcp` needs a `port`", (*path, "transport"), hint="write `port: 8100`, say")
    if engine.get("transport") == "tcp" and str(engine.get("standby")).lower() in ("true", "yes", "on", "1"):
        report.error(
            "a standby cannot share its engine's port",
            (*path, "standby"),
            also=((*path, "transport"),),
            hint="leave out `transport: tcp`: the `port` is answered all the same",
        )
    if not isinstance(written, str) or not written.isdecimal() or len(written) > 9:  # reported by the schema
        return
    port = int(written)
    if other := ports.get(port):
        report.error(
            f"port {port} is taken twice: `{key_name(here)}` and `{key_name(other)}`",
            here,
            also=(other,),
            hint="give one of them another port",
        )
    else:
        ports[port] = here


def _check_model(
    engine: Mapping[str, Node], path: ConfigPath, folder: Path, environ: Mapping[str, str], report: Report
) -> None:
    model = engine.get("model")
    if not isinstance(model, str) or not is_local_model(model):
        return
    place = expand(model, folder, environ)
    if not exists(place):
        report.error(
            f"no model at `{model}`",
            (*path, "model"),
            hint=f"that is {place}; a name on the hub begins with neither `/`, `./`, `../` nor `~`",
        )


def _check_names(
    engine: Mapping[str, Node],
    path: ConfigPath,
    served: Iterable[str],
    names: dict[tuple[str, str], ConfigPath],
    report: Report,
) -> None:
    runner = engine.get("runner") or "generate"
    here = (*path, "served_model_name" if engine.get("served_model_name") else "model")
    for name in dict.fromkeys(served):
        if name.startswith("-") and here[-1] == "model" and is_local_model(str(engine.get("model"))):
            report.error(
                f"its folder's name would be the model's, and begins with `-`: `{name}`",
                here,
                hint="vLLM would take it for a flag: write a `served_model_name`",
            )
        _claim((str(runner), name), here, names, report)
    args = engine.get("args")
    adapters = args.get("lora_modules") if isinstance(args, dict) else None
    for name in adapter_names(adapters):
        _claim((str(runner), name), (*path, "args", "lora_modules"), names, report)


def _claim(
    key: tuple[str, str], here: ConfigPath, names: dict[tuple[str, str], ConfigPath], report: Report
) -> None:
    other = names.setdefault(key, here)
    if other is here:
        return
    engine, adapter = here[1], "lora_modules" in (here[-1], other[-1])
    if other[1] == engine:
        what = f"{engine} has the name `{key[1]}` twice, for an adapter and for "
        what += "another" if here == other else "its model"
    else:
        what = f"two engines answer to the model name `{key[1]}`: {engine} and {other[1]}"
    hint = "give the adapter another name" if adapter else "give one of them another `served_model_name`"
    report.error(what, here, also=() if here == other else (other,), hint=hint)


def _served_names(engine: Mapping[str, Node], folder: Path, environ: Mapping[str, str]) -> Iterator[str]:
    written, model = engine.get("served_model_name"), engine.get("model")
    if isinstance(written, list):
        yield from (str(name) for name in written if isinstance(name, str))
    elif isinstance(written, str):
        yield str(written)
    elif isinstance(model, str):
        yield expand(model, folder, environ).name if is_local_model(model) else str(model)
