"""One configuration in force, whole: every value that depends on it, built before anything changes."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from memoria.admin.api.authorizer import Authorizer
from memoria.admin.status.status import CertificateStatus
from memoria.config.model import Config, Runner
from memoria.daemon.tls import Certificate, read_certificate
from memoria.errors import ConfigError, Problem
from memoria.preflight.preflight import Deployment
from memoria.proxy.access.keys import Keys
from memoria.proxy.access.rules import access_rules
from memoria.proxy.admission.guard import Guarding
from memoria.proxy.exchange.context import Policy, Protected
from memoria.proxy.router import Candidate


@dataclass(frozen=True, slots=True)
class Generation:
    """`candidates`: by runner (None: any) and local port, in the file's order."""

    deployment: Deployment
    keys: Keys
    guarding: Guarding | None
    policy: Policy
    authorizer: Authorizer
    candidates: Mapping[tuple[Runner | None, int], tuple[Candidate, ...]]
    certificate: Certificate | None = None

    @property
    def config(self) -> Config:
        return self.deployment.config

    @property
    def max_requests(self) -> dict[str, int]:
        """Most requests in flight, by engine."""
        return {engine.name: engine.max_requests for engine in self.config.engines}

    @property
    def certificate_status(self) -> CertificateStatus | None:
        found = self.certificate
        return None if found is None else CertificateStatus(found.sha256, found.expires)

    @property
    def url(self) -> str:
        """Where a person on this machine finds memoria."""
        host = self.config.listen.host
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        scheme = "http" if self.certificate is None else "https"
        return f"{scheme}://{shown}:{self.config.listen.port}"


def read_files(config: Config) -> tuple[Keys, Certificate | None]:
    """The files that a configuration names. Raises `ConfigError` with every problem."""
    problems: list[Problem] = []
    keys, certificate = Keys(), None
    try:
        keys = Keys.of(config.access)
    except ConfigError as error:
        problems += error.problems
    try:
        certificate = read_certificate(config)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return keys, certificate


def build_generation(
    deployment: Deployment, keys: Keys, certificate: Certificate | None = None
) -> Generation:
    """Pure but for the host's name. What can fail has been done for its arguments: files and plan."""
    config = deployment.config
    guarding = Guarding(config, config.guard) if config.guard else None
    policy = Policy(
        limits=config.limits,
        timeouts=config.timeouts,
        rules=access_rules(config, keys, hostname=socket.gethostname()),
        filters={e.name: e.filters for e in config.engines if e.filters.strip or e.filters.set},
        tell_after={
            e.name: config.swap.tell_after for e in config.engines if e.on_demand and config.swap.tell_after
        },
        protected=Protected(guarding.protects, guarding.observe) if guarding else None,
    )
    return Generation(
        deployment=deployment,
        keys=keys,
        guarding=guarding,
        policy=policy,
        authorizer=Authorizer(config, keys.clients, keys.admins),
        candidates=_candidates(config),
        certificate=certificate,
    )


def _candidates(config: Config) -> dict[tuple[Runner | None, int], tuple[Candidate, ...]]:
    """All engines on the main port, one on an engine's own."""
    own_ports = {engine.port: engine for engine in config.engines if engine.port is not None}
    runners: tuple[Runner | None, ...] = ("generate", "pooling", None)
    return {
        (runner, port): tuple(
            Candidate(engine.name, engine.models)
            for engine in (config.engines if port not in own_ports else (own_ports[port],))
            if runner in (None, engine.runner)
        )
        for port in (config.listen.port, *own_ports)
        for runner in runners
    }
