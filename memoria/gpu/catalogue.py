"""GPUs by name, to plan for another machine.

Sizes are CUDA's totals (PyTorch's "total capacity of ... GiB"), of which vLLM takes its fraction; NVML's
total and the size in a card's name are larger. Drivers differ by some hundredths.
"""

from __future__ import annotations

import difflib
import re
from decimal import Decimal

from memoria.errors import ConfigError, Problem
from memoria.gpu.device import Device
from memoria.text import GIB

_OBSERVED = {
    "NVIDIA A10": "22.05",
    "NVIDIA A10G": "22.06",
    "NVIDIA A100 40GB": "39.39",
    "NVIDIA A100 80GB": "79.15",
    "NVIDIA A30": "23.49",
    "NVIDIA A40": "44.34",
    "NVIDIA B200": "178.35",
    "NVIDIA GB10": "119.63",
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
# Not observed: NVML's total less what CUDA leaves out on an observed card of the same generation.
_DERIVED = {
    "NVIDIA A800 40GB": "39.39",
    "NVIDIA A800 80GB": "79.15",
    "NVIDIA H20": "94.99",
    "NVIDIA L20": "44.39",
    "NVIDIA RTX 4500 Ada": "23.55",
    "NVIDIA RTX A4500": "19.72",
    "GeForce RTX 2080": "7.75",
    "GeForce RTX 2080 Super": "7.75",
    "GeForce RTX 3060 Ti": "7.67",
    "GeForce RTX 3070 Ti": "7.67",
    "GeForce RTX 3080 12GB": "11.63",
    "GeForce RTX 3080 Ti": "11.63",
    "GeForce RTX 3090 Ti": "23.56",
    "GeForce RTX 4070 Super": "11.60",
    "GeForce RTX 4070 Ti": "11.60",
    "GeForce RTX 4080 Super": "15.57",
    "GeForce RTX 4090 D": "23.53",
    "GeForce RTX 5060": "7.51",
    "GeForce RTX 5060 Ti 8GB": "7.51",
    "GeForce RTX 5060 Ti 16GB": "15.48",
    "GeForce RTX 5070": "11.49",
}
# MIG slices, as `nvidia-smi mig -lgip` was published to list them; where drivers differ, the smallest.
_SLICES = {
    "NVIDIA A30": {"1g.6gb": "5.81", "2g.12gb": "11.69"},
    "NVIDIA A100 40GB": {
        **{"1g.5gb": "4.75", "1g.10gb": "9.62", "2g.10gb": "9.62", "3g.20gb": "19.50", "4g.20gb": "19.50"},
    },
    "NVIDIA A100 80GB": {
        **{"1g.10gb": "9.50", "1g.20gb": "19.50", "2g.20gb": "19.50", "3g.40gb": "39.25", "4g.40gb": "39.25"},
    },
    "NVIDIA B200": {"1g.23gb": "20.50", "1g.45gb": "44.25", "2g.45gb": "44.25"},
    "NVIDIA H100": {
        **{"1g.10gb": "9.75", "1g.20gb": "19.62", "2g.20gb": "19.62", "3g.40gb": "39.50", "4g.40gb": "39.50"},
    },
    "NVIDIA H200": {
        **{
            "1g.18gb": "16.00",
            "1g.35gb": "32.25",
            "2g.35gb": "32.25",
            "3g.71gb": "69.50",
            "4g.71gb": "69.50",
        },
    },
    "NVIDIA RTX PRO 6000": {"1g.24gb": "23.12"},
}
CATALOGUE = {  # GiB
    **{name: Decimal(size) for name, size in (_OBSERVED | _DERIVED).items()},
    **{
        f"{card} MIG {slice_}": Decimal(size)
        for card, sizes in _SLICES.items()
        for slice_, size in sizes.items()
    },
}
# Less than this does not hold a CUDA context.
LEAST_BYTES = 2**28
_SIZE = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)\s*(GiB|GB|MiB)", re.IGNORECASE)
_BARE_SIZE = re.compile(r"(\d{1,4}(?:\.\d{1,3})?)\s*(?:gi?)?", re.IGNORECASE)
_UNITS = {"gib": GIB, "gb": 10**9, "mib": 2**20}
# The slice of a MIG device: `1g.10gb`.
_SLICE = re.compile(r"\bmig (\d)g\.(\d+)gb\b")
# Parts of a name, as `nvidia-smi` shows it, that do not distinguish cards: maker, series, connection, kind of
# memory.
_COMMON = re.compile(r"nvidia|geforce|tesla|rtx|\b(?:sxm\d?|pcie|hbm\d\w?|generation)\b")
_WORD = re.compile(r"[a-z]+|\d+")
_MEMORY = re.compile(r"(\d+)\s*gb\b")
# CUDA's total may differ this much from the size in a name: ECC takes up to a tenth.
_TOLERANCE = Decimal("0.12")
_SHOWN = 4


def named_device(text: str) -> Device:
    """A device by its size (`24GiB`) or by a name in the catalogue, also as `nvidia-smi` spells it: `RTX
    4090`, `a100 40gb`, `NVIDIA H100 80GB HBM3`. Raises `ConfigError`."""
    if size := _SIZE.fullmatch(text.strip()):
        total = int(Decimal(size[1]) * _UNITS[size[2].lower()])
        if total < LEAST_BYTES:
            raise ConfigError(
                Problem(f"`--gpu {text}` is not the size of a GPU", (), "give its memory, as in --gpu 24GiB")
            )
        return _device(text.strip(), total)
    found = _matches(text)
    if len(found) == 1:
        return _device(found[0], int(CATALOGUE[found[0]] * GIB))
    what = f"`--gpu {text}` may be several GPUs" if found else f"the catalogue has no GPU named `{text}`"
    raise ConfigError(Problem(what, (), _hint(text, found)))


def _matches(text: str) -> list[str]:
    """The entries of this card, by the words that distinguish cards (`Ti`, `Super`, `Ada`, `NVL`), never of
    another one. A size in the name chooses among them; without one, an entry without one."""
    card, sizes = _parts(text)
    same = [name for name in CATALOGUE if card and _parts(name)[0] == card]
    if sizes:
        # A slice is named after its whole card.
        cards = {name: CATALOGUE[name.partition(" MIG ")[0]] for name in same}
        return [name for name in same if all(abs(cards[name] - s) <= s * _TOLERANCE for s in sizes)]
    return [name for name in same if not _parts(name)[1]] or same


def _parts(name: str) -> tuple[frozenset[str], tuple[int, ...]]:
    """The words and numbers that distinguish cards, and sizes of memory in GB."""
    plain = _COMMON.sub(" ", _SLICE.sub(r"mig slice\1of\2", name.lower()))
    return frozenset(_WORD.findall(_MEMORY.sub(" ", plain))), tuple(map(int, _MEMORY.findall(plain)))


def _hint(text: str, found: list[str]) -> str:
    if bare := _BARE_SIZE.fullmatch(text.strip()):
        return f"did you mean `--gpu {bare[1]}GiB`?"
    names = found or _similar(text)
    return "give its memory, as in --gpu 24GiB" + (f", or one of: {', '.join(names)}" if names else "")


def _similar(text: str) -> list[str]:
    """A few names, first those that have all the words of `text`."""
    card = _parts(text)[0]
    longer = [name for name in CATALOGUE if card and card <= _parts(name)[0]]
    plain = {name.lower().removeprefix("nvidia ").removeprefix("geforce "): name for name in CATALOGUE}
    alike = [plain[key] for key in difflib.get_close_matches(text.lower(), plain, n=_SHOWN)]
    return list(dict.fromkeys(longer + alike))[:_SHOWN]


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
