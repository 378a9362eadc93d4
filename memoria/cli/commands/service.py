"""`memoria service`: the unit of systemd/README.md for this environment and configuration."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

import click

from memoria.cli.options import Options, command, common_options
from memoria.errors import ExitCode, MemoriaError, Problem, UnavailableError

# beside this file in an installed memoria (pyproject.toml), else in the source tree
TEMPLATES = (
    Path(__file__).with_name("memoria.service"),
    Path(__file__).parents[3] / "systemd" / "memoria.service",
)
UNIT = "memoria.service"
MARK = "# Written by `memoria service install`; `memoria service uninstall` removes it.\n"

HOMES = ("/home", "/root", "/run/user")  # what ProtectHome= hides (systemd.exec(5))
VERBS = {"ExecStart": "run", "ExecReload": "reload"}
# Keys that a user's systemd may not set, or does not need.
FOR_ROOT = (
    *("User", "Group", "SupplementaryGroups", "CapabilityBoundingSet", "DevicePolicy", "DeviceAllow"),
    *("Protect", "Private", "Remove", "Restrict", "System", "Lock", "NoNewPrivileges", "UMask", "OOMPolicy"),
    *("StateDirectory", "CacheDirectory", "LogsDirectory", "RuntimeDirectory", "Environment"),
)
KEPT = ("RestartSec", "RestartPreventExitStatus", "Restart")  # although they begin like some above


@click.group()
@common_options
def service() -> None:
    """Run memoria as a systemd service: system-wide as root, otherwise for the current user.

    \b
    Example:  memoria service install -c memoria.yaml
    """


@command(short_help="Write the unit for this environment and configuration.")
@click.option(
    "--user",
    "account",
    metavar="NAME",
    default="memoria",
    show_default=True,
    help="Account that runs the service, if root installs it.",
)
@click.option("--print", "only_print", is_flag=True, help="Print the unit and write nothing.")
def install(options: Options, account: str, only_print: bool) -> int:
    """Write the unit for this environment and configuration, and print the next command.

    \b
    Example:  memoria service install -c /etc/memoria/memoria.yaml --print
    """
    return install_unit(options.config, account, only_print=only_print)


@command()
def uninstall(options: Options) -> int:
    """Remove the unit that `install` wrote.

    \b
    Example:  memoria service uninstall
    """
    return uninstall_unit()


service.add_command(install)
service.add_command(uninstall)


def install_unit(flag: Path | None, account: str, *, only_print: bool) -> int:
    """Raises `ConfigError` for an invalid configuration, `MemoriaError` if the unit cannot be written or its
    account does not exist."""
    from memoria.config.file import find
    from memoria.config.load import load

    config = find(flag, os.environ, Path.cwd()).resolve()
    load(config, os.environ)
    executable = Path(sys.executable).with_name("memoria")
    if not executable.exists():
        raise UnavailableError(
            Problem(f"there is no {executable}", hint="install memoria into this environment: pip install .")
        )
    as_root = os.geteuid() == 0
    if as_root and not only_print:
        _check_account(account)
    text = unit_text(executable, config, account if as_root else None)
    if only_print:
        sys.stdout.write(text)
        return ExitCode.OK
    path = unit_path()
    if path.exists() and not path.read_text(encoding="utf-8").startswith(MARK):
        raise MemoriaError(
            Problem(f"{path} was not written by memoria", hint="move it away, or edit it by hand")
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UnavailableError(f"cannot write {path}: {error.strerror}") from None
    sys.stdout.write(f"wrote {path}\n")
    sys.stdout.write(f"next: {_systemctl()} daemon-reload && {_systemctl()} enable --now memoria\n")
    return ExitCode.OK


def uninstall_unit() -> int:
    """Raises `MemoriaError` if there is no unit that `install_unit` wrote."""
    path = unit_path()
    try:
        written = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MemoriaError(f"there is no {path}") from None
    if not written.startswith(MARK):
        raise MemoriaError(Problem(f"{path} was not written by memoria", hint="remove it by hand"))
    path.unlink()
    sys.stdout.write(f"removed {path}\n")
    sys.stdout.write(f"next: {_systemctl()} disable --now memoria; {_systemctl()} daemon-reload\n")
    return ExitCode.OK


def _systemctl() -> str:
    return "systemctl" if os.geteuid() == 0 else "systemctl --user"


def unit_path() -> Path:
    if os.geteuid() == 0:
        return Path("/etc/systemd/system", UNIT)
    base = os.environ.get("XDG_CONFIG_HOME", "")
    folder = Path(base) if base.startswith("/") else Path.home() / ".config"
    return folder / "systemd/user" / UNIT


def unit_text(executable: Path, config: Path, account: str | None) -> str:
    """`account` None: a unit for a user's systemd, without the keys that it may not set."""
    at_home = any(path.is_relative_to(home) for path in (executable, config) for home in HOMES)
    lines = []
    template = next(path for path in TEMPLATES if path.exists())
    for line in template.read_text(encoding="utf-8").splitlines():
        key, equals, _ = line.partition("=")
        if key in VERBS:
            lines.append(f"{key}={_quoted(executable)} {VERBS[key]} --config {_quoted(config)}")
        elif account is not None and key in ("User", "Group"):
            lines.append(f"{key}={account if key == 'User' else _group(account)}")
        elif account is not None and key == "ProtectHome" and at_home:
            lines.append("ProtectHome=read-only")
        elif account is None and key == "WantedBy":
            lines.append("WantedBy=default.target")
        elif account is None and key in ("After", "Wants"):
            continue  # units of the system's systemd
        elif account is not None or key in KEPT or not (equals and key.startswith(FOR_ROOT)):
            lines.append(line)
    if account is None:  # many comments explain lines that were removed
        lines = [line for line in lines if not line.startswith("#")]
    return MARK + "\n".join(lines[1:] if lines[0].startswith("# Change it") else lines) + "\n"


def _quoted(path: Path) -> str:
    """systemd.service(5), COMMAND LINES."""
    text = str(path).replace("%", "%%").replace("$", "$$")
    if not any(character in text for character in " \"'\\"):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _check_account(account: str) -> None:
    try:
        pwd.getpwnam(account)
    except KeyError:
        raise UnavailableError(
            Problem(
                f"there is no user `{account}`",
                hint=f"useradd --system --home-dir /var/lib/memoria --shell /usr/sbin/nologin {account}; "
                "or name another one with --user",
            )
        ) from None


def _group(account: str) -> str:
    import grp

    try:
        return grp.getgrgid(pwd.getpwnam(account).pw_gid).gr_name
    except KeyError:
        return account
