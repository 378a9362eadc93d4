"""Do the models fit into their budgets? Asked before anything is spawned, of files that are here: config.json
and the headers of the weights. Nothing is loaded, and the hub is not asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from memoria.config.model import Config
from memoria.plan.outcome import Learned
from memoria.plan.plan import Plan
from memoria.plan.problems import Misfits, find_misfits
from memoria.preflight.outcomes import make_outcomes, read_models
from memoria.preflight.records import Records, fingerprint_now, records_dir
from memoria.vllm.install.facts import VllmInstall

NOT_CERTAIN = "not certain; `memoria plan` shows every term"


def judge_models(
    config: Config, plan: Plan, install: VllmInstall | None, environ: Mapping[str, str]
) -> Misfits:
    """What is likely is judged once more by what the engines said at earlier starts, where they said it: an
    estimate must not doubt what has been seen to work. A model that is not here, or of no known kind, is
    left out: vLLM will say what is wrong with it."""
    files, unknown = read_models(config, environ)
    judged = find_misfits(config, plan, make_outcomes(config, plan, files, unknown))
    if judged.likely and install is not None and (said := learned(config, plan, install, environ)):
        judged = find_misfits(config, plan, make_outcomes(config, plan, files, unknown, said))
    return replace(judged, likely=tuple(replace(p, where=(*p.where, NOT_CERTAIN)) for p in judged.likely))


def learned(
    config: Config, plan: Plan, install: VllmInstall, environ: Mapping[str, str]
) -> dict[str, Learned]:
    """What engines said at earlier starts with these very settings."""
    records = Records(records_dir(config, environ))
    if records.is_empty:
        return {}
    found = {
        engine.name: records.find(
            engine.name, fingerprint_now(engine, plan.device(engine.name), install, environ)
        )
        for engine in config.engines
    }
    return {name: record.learned for name, record in found.items() if record is not None}
