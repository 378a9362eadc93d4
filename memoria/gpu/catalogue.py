"""GPUs by name, to plan for a machine that is not here.

Sizes are what CUDA calls the total (PyTorch's "total capacity of ... GiB"), which vLLM's fraction is of; NVML
and the maker's name for the card say more. Drivers differ by some hundredths.
"""

from __future__ import annotations

import re
from decimal import Decimal

from memoria.errors import ConfigError, Problem
from memoria.gpu.device import Device
from memoria.text import GIB

CATALOGUE = {
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
# Less than this holds no CUDA context.
LEAST_BYTES = 2**28
_SIZE = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)\s*(GiB|GB|MiB)", re.IGNORECASE)
_UNITS = {"gib": GIB, "gb": 10**9, "mib": 2**20}
_MAKER = re.compile(r"nvidia|geforce|tesla")
# Of a name as `nvidia-smi` shows it: how the card is connected and its kind of memory tell no sizes.
_FORM = re.compile(r"\b(?:sxm\d?|pcie|hbm\d\w?|generation)\b")
_WORD = re.compile(r"[a-z0-9]+")
# A model's sizes of memory come apart where they are part of its name, as in `A100-SXM4-80GB`.
_MEMORY = re.compile(r"\d+gb")


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
        return _device(found[0], int(Decimal(CATALOGUE[found[0]]) * GIB))
    known = ", ".join(found or CATALOGUE)
    what = f"`--gpu {text}` may be several GPUs" if found else f"no GPU named `{text}` is known here"
    raise ConfigError(Problem(what, (), f"give its memory, as in --gpu 24GiB, or one of: {known}"))


def _found(text: str) -> list[str]:
    """The entry of exactly this name; else those that have all its words; else the one that has all but the
    size of its memory, where it only comes in one."""
    key, words = _key(text), _words(text)
    if not key:
        return []
    if exact := [name for name in CATALOGUE if _key(name) == key or _words(name) == words]:
        return exact
    if found := [name for name in CATALOGUE if words <= _words(name)]:
        return found
    return [
        name for name in CATALOGUE if _words(name) == {word for word in words if not _MEMORY.fullmatch(word)}
    ]


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
