"""GPUs by name, to plan for a machine that is not here.

Sizes are what CUDA calls the total (PyTorch's "total capacity of ... GiB"), which vLLM's fraction is of; NVML
and the maker's name for the card say more. Drivers differ by some hundredths. Those of `_DERIVED` were not
seen: NVML's total, as `nvidia-smi` shows it, less what CUDA leaves out of a card of the same generation.
"""

from __future__ import annotations

import difflib
import re
from decimal import Decimal

from memoria.errors import ConfigError, Problem
from memoria.gpu.device import Device
from memoria.text import GIB

_SEEN = {
    "NVIDIA A10": "22.05",
    "NVIDIA A10G": "22.06",
    "NVIDIA A100 40GB": "39.39",
    "NVIDIA A100 80GB": "79.15",
    "NVIDIA A30": "23.49",
    "NVIDIA A40": "44.34",
    "NVIDIA B200": "178.35",
    "NVIDIA GH200": "94.50",
    "NVIDIA H100": "79.10",
    "NVIDIA H100 NVL": "93.02",
    "NVIDIA H200": "139.81",
    "NVIDIA L4": "22.03",
    "NVIDIA L40": "44.39",
    "NVIDIA L40S": "44.39",
    "NVIDIA RTX 2000 Ada": "15.59",
    "NVIDIA RTX 4000 Ada": "19.55",
    "NVIDIA RTX 5000 Ada": "31.48",
    "NVIDIA RTX 6000 Ada": "47.38",
    "NVIDIA RTX A4000": "15.72",
    "NVIDIA RTX A5000": "23.68",
    "NVIDIA RTX A6000": "47.41",
    "NVIDIA RTX PRO 6000": "94.97",
    "GeForce RTX 2080 Ti": "10.75",
    "GeForce RTX 3060": "11.63",
    "GeForce RTX 3070": "7.67",
    "GeForce RTX 3080": "9.63",
    "GeForce RTX 3090": "23.57",
    "GeForce RTX 4060": "7.63",
    "GeForce RTX 4060 Ti 8GB": "7.63",
    "GeForce RTX 4060 Ti 16GB": "15.58",
    "GeForce RTX 4070": "11.60",
    "GeForce RTX 4070 Ti Super": "15.56",
    "GeForce RTX 4080": "15.57",
    "GeForce RTX 4090": "23.53",
    "GeForce RTX 5070 Ti": "15.47",
    "GeForce RTX 5080": "15.47",
    "GeForce RTX 5090": "31.36",
    "Tesla T4": "14.56",
    "Tesla V100 16GB": "15.77",
    "Tesla V100 32GB": "31.73",
}
# In MiB, as NVML says, and what CUDA leaves out of that in GiB, by the card that it was seen of.
_DERIVED = {
    "NVIDIA A800 40GB": (40960, "NVIDIA A100 40GB"),
    "NVIDIA A800 80GB": (81920, "NVIDIA A100 80GB"),
    "NVIDIA H20": (97871, "NVIDIA H200"),
    "NVIDIA L20": (46068, "NVIDIA L40"),
    "NVIDIA RTX 4500 Ada": (24570, "NVIDIA RTX 4000 Ada"),
    "NVIDIA RTX A4500": (20470, "NVIDIA RTX A4000"),
    "GeForce RTX 2080": (8192, "GeForce RTX 2080 Ti"),
    "GeForce RTX 2080 Super": (8192, "GeForce RTX 2080 Ti"),
    "GeForce RTX 3060 Ti": (8192, "GeForce RTX 3070"),
    "GeForce RTX 3070 Ti": (8192, "GeForce RTX 3070"),
    "GeForce RTX 3080 12GB": (12288, "GeForce RTX 3080"),
    "GeForce RTX 3080 Ti": (12288, "GeForce RTX 3080"),
    "GeForce RTX 3090 Ti": (24564, "GeForce RTX 3090"),
    "GeForce RTX 4070 Super": (12282, "GeForce RTX 4070"),
    "GeForce RTX 4070 Ti": (12282, "GeForce RTX 4070"),
    "GeForce RTX 4080 Super": (16376, "GeForce RTX 4080"),
    "GeForce RTX 4090 D": (24564, "GeForce RTX 4090"),
    "GeForce RTX 5060": (8151, "GeForce RTX 5070 Ti"),
    "GeForce RTX 5060 Ti 8GB": (8151, "GeForce RTX 5070 Ti"),
    "GeForce RTX 5060 Ti 16GB": (16311, "GeForce RTX 5070 Ti"),
    "GeForce RTX 5070": (12227, "GeForce RTX 5070 Ti"),
}
# MiB, of the cards that others are derived from.
_NVML_TOTALS = {
    "NVIDIA A100 40GB": 40960,
    "NVIDIA A100 80GB": 81920,
    "NVIDIA H200": 143771,
    "NVIDIA L40": 46068,
    "NVIDIA RTX 4000 Ada": 20475,
    "NVIDIA RTX A4000": 16376,
    "GeForce RTX 2080 Ti": 11264,
    "GeForce RTX 3070": 8192,
    "GeForce RTX 3080": 10240,
    "GeForce RTX 3090": 24576,
    "GeForce RTX 4070": 12282,
    "GeForce RTX 4080": 16376,
    "GeForce RTX 4090": 24564,
    "GeForce RTX 5070 Ti": 16303,
}
# GiB.
CATALOGUE: dict[str, Decimal] = {
    **{name: Decimal(size) for name, size in _SEEN.items()},
    **{
        name: Decimal(_SEEN[like]) + (Decimal(total) - _NVML_TOTALS[like]) / 1024
        for name, (total, like) in _DERIVED.items()
    },
}
# Less than this holds no CUDA context.
LEAST_BYTES = 2**28
_SIZE = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)\s*(GiB|GB|MiB)", re.IGNORECASE)
_UNITS = {"gib": GIB, "gb": 10**9, "mib": 2**20}
_MAKER = re.compile(r"nvidia|geforce|tesla")
# Of a name as `nvidia-smi` shows it: how the card is connected and its kind of memory tell no sizes.
_FORM = re.compile(r"\b(?:sxm\d?|pcie|hbm\d\w?|generation)\b")
_WORD = re.compile(r"[a-z0-9]+")
# A model's sizes of memory come apart where they are part of its name, as in `A100-SXM4-80GB`.
_MEMORY = re.compile(r"(\d+)gb")
# Of a name's size of memory, by how much CUDA's total may differ from it: ECC takes up to a tenth.
_MAKERS_SHARE = Decimal("0.12")
# What a name may leave out of an entry's; every other word makes another card (`Ti`, `Super`, `Ada`, `NVL`).
_SERIES = frozenset({"rtx"})
_BARE_SIZE = re.compile(r"(\d{1,4}(?:\.\d{1,3})?)\s*(?:gi?)?", re.IGNORECASE)
_CLOSE = 4


def named_device(text: str) -> Device:
    """`24GiB`, or a name out of the catalogue, also as `nvidia-smi` spells it: `RTX 4090`, `a100 40gb`,
    `NVIDIA H100 80GB HBM3`. Raises `ConfigError`."""
    if size := _SIZE.fullmatch(text.strip()):
        total = int(Decimal(size[1]) * _UNITS[size[2].lower()])
        if total < LEAST_BYTES:
            raise ConfigError(
                Problem(f"`--gpu {text}` is no size of a GPU", (), "give its memory, as in --gpu 24GiB")
            )
        return _device(text.strip(), total)
    found = _found(text)
    if len(found) == 1:
        return _device(found[0], int(CATALOGUE[found[0]] * GIB))
    what = f"`--gpu {text}` may be several GPUs" if found else f"no GPU named `{text}` is known here"
    raise ConfigError(Problem(what, (), _hint(text, found)))


def _hint(text: str, found: list[str]) -> str:
    if bare := _BARE_SIZE.fullmatch(text.strip()):
        return f"did you mean `--gpu {bare[1]}GiB`?"
    names = found or _close(text)
    return "give its memory, as in --gpu 24GiB" + (f", or one of: {', '.join(names)}" if names else "")


def _close(text: str) -> list[str]:
    """A few names, those with all the words of `text` first."""
    words, keys = _words(text), {_key(name): name for name in CATALOGUE}
    longer = [name for name in CATALOGUE if words and words <= _words(name)]
    alike = [keys[key] for key in difflib.get_close_matches(_key(text), keys, n=_CLOSE)]
    return list(dict.fromkeys(longer + alike))[:_CLOSE]


def _found(text: str) -> list[str]:
    """The entry of exactly this name; else those that have but a size of memory or the series besides; else
    the one that has all but the size of its memory, where that is its size. Never another card."""
    key, words = _key(text), _words(text)
    if not key:
        return []
    if exact := [name for name in CATALOGUE if _key(name) == key or _words(name) == words]:
        return exact
    if found := [name for name in CATALOGUE if words <= _words(name) and _same_card(_words(name) - words)]:
        return found
    sizes = [Decimal(match[1]) for word in words if (match := _MEMORY.fullmatch(word))]
    plain = {word for word in words if not _MEMORY.fullmatch(word)}
    return [
        name
        for name in CATALOGUE
        if _words(name) - _SERIES == plain - _SERIES
        and all(abs(CATALOGUE[name] - size) <= size * _MAKERS_SHARE for size in sizes)
    ]


def _same_card(besides: set[str]) -> bool:
    return all(word in _SERIES or _MEMORY.fullmatch(word) for word in besides)


def _words(name: str) -> set[str]:
    return set(_WORD.findall(_FORM.sub("", _MAKER.sub("", name.lower()))))


def _key(name: str) -> str:
    return "".join(_WORD.findall(_MAKER.sub("", name.lower())))


def _device(name: str, total: int) -> Device:
    return Device(
        index=0,
        uuid="planned",
        name=name,
        total_bytes=total,
        used_bytes=0,
        free_bytes=total,
        reserved_bytes=0,
        processes=(),
    )
