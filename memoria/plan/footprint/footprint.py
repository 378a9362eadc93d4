"""Every term of one engine's memory, put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memoria.plan.checkpoint.model_files import ModelFiles
from memoria.plan.footprint.activation import activation_bytes, graph_bytes
from memoria.plan.footprint.caveats import caveats
from memoria.plan.footprint.kv_cache import KvCache, is_full, lay_out
from memoria.plan.footprint.layers import Attention, Demand, ceil_div
from memoria.plan.footprint.layout import kv_layers
from memoria.plan.footprint.model_types import UnknownModelError
from memoria.plan.footprint.parameters import tensors_from_shape
from memoria.plan.footprint.settings import Machine, Settings, read_settings
from memoria.plan.footprint.shape import Shape, read_shape
from memoria.plan.footprint.weights import Weights, scaled, weigh


@dataclass(frozen=True, slots=True)
class Footprint:
    """One GPU's share. `activation_bytes` and `graph_bytes` are estimates, everything else is counted;
    `caveats` say what is not."""

    shape: Shape
    settings: Settings
    weights: Weights
    activation_bytes: int
    graph_bytes: int
    kv_cache: KvCache
    caveats: tuple[str, ...] = ()

    @property
    def fixed_bytes(self) -> int:
        """What lies inside the fraction before the KV cache gets the rest."""
        return self.weights.total_bytes + self.activation_bytes + self.graph_bytes

    @property
    def token_bytes(self) -> int:
        """KV bytes of one more token of a long request: layers that keep every token."""
        kept = (group.layer for group in self.kv_cache.groups if is_full(group.layer))
        block = self.kv_cache.block_bytes
        return sum(ceil_div(block, layer.block_size) for layer in kept if isinstance(layer, Attention))


def measure(
    files: ModelFiles,
    args: Mapping[str, Any],
    machine: Machine,
    *,
    pooling: bool,
    environ: Mapping[str, str] | None = None,
    weights: Weights | None = None,
) -> Footprint:
    """`environ` is what the engine's environment sets; `weights` are those that are known already. Raises
    `ValueError` (`UnknownModelError`), with a text for a person, where the model is of a kind not known here,
    or its configuration makes no sense."""
    try:
        shape = read_shape(files)
        settings = read_settings(args, shape, machine, pooling=pooling, environ=environ)
        weights = weights or _weighed(files, shape, settings, pooling=pooling)
        kv_cache = lay_out(
            kv_layers(shape, settings),
            Demand(settings.max_model_len, settings.in_flight),
            hybrid=settings.hybrid,
        )
        activation = activation_bytes(shape, settings, pooling=pooling)
        graphs = graph_bytes(shape, settings)
    except UnknownModelError:
        raise
    except KeyError as error:
        raise UnknownModelError(f"config.json lacks {error}") from error
    except (AttributeError, IndexError, OverflowError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UnknownModelError(f"config.json makes no sense here ({error})") from error
    if kv_cache.groups and kv_cache.block_bytes <= 0:
        raise UnknownModelError("by its config.json the model keeps nothing of a token")
    return Footprint(
        shape,
        settings,
        weights,
        activation,
        graphs,
        kv_cache,
        tuple(caveats(files, shape, settings, args)),
    )


def _weighed(files: ModelFiles, shape: Shape, settings: Settings, *, pooling: bool) -> Weights:
    stored = files.tensors or tensors_from_shape(shape)
    weights = weigh(stored, shape, settings, pooling=pooling, exact=bool(files.tensors))
    if not files.tensors and files.index_bytes:
        return scaled(weights, stored, files.index_bytes)
    return weights
