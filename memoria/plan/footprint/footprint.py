"""Every term of one engine's memory, put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memoria.checkpoint.model_files import ModelFiles
from memoria.plan.footprint.activation import activation_bytes, graph_bytes
from memoria.plan.footprint.kv_cache import KvCache, is_full, lay_out
from memoria.plan.footprint.layers import Attention, Demand, ceil_div
from memoria.plan.footprint.layout import kv_layers
from memoria.plan.footprint.parameters import tensors_from_shape
from memoria.plan.footprint.settings import Machine, Settings, read_settings
from memoria.plan.footprint.shape import Shape, read_shape
from memoria.plan.footprint.weights import Weights, weigh


@dataclass(frozen=True, slots=True)
class Footprint:
    """One GPU's share. `activation_bytes` and `graph_bytes` are estimates, everything else is counted."""

    shape: Shape
    settings: Settings
    weights: Weights
    activation_bytes: int
    graph_bytes: int
    kv_cache: KvCache

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


def measure(files: ModelFiles, args: Mapping[str, Any], machine: Machine, *, pooling: bool) -> Footprint:
    """Raises `ValueError` (`UnknownStateError` among them) where the model is of a kind not known here."""
    try:
        shape = read_shape(files)
        settings = read_settings(args, shape, machine, pooling=pooling)
        stored = files.tensors or tensors_from_shape(shape)
        weights = weigh(stored, shape, settings, pooling=pooling, exact=bool(files.tensors))
        layers = kv_layers(shape, settings, str(args.get("mamba_ssm_cache_dtype", "auto")))
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"config.json lacks or misstates {error}") from error
    return Footprint(
        shape=shape,
        settings=settings,
        weights=weights,
        activation_bytes=activation_bytes(shape, settings, pooling=pooling),
        graph_bytes=graph_bytes(shape, settings),
        kv_cache=lay_out(layers, Demand(settings.max_model_len, settings.in_flight), hybrid=settings.hybrid),
    )
