"""GPUs by name and by size."""

from __future__ import annotations

import re

import pytest

from memoria.errors import ConfigError
from memoria.gpu.catalogue import CATALOGUE, named_device
from memoria.text import GIB


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("24GiB", 24 * GIB),
        ("24 GB", 24 * 10**9),
        ("512mib", 512 * 2**20),
        ("23.5GiB", 23 * GIB + GIB // 2),
        ("rtx4090", int(23.53 * GIB)),
        ("NVIDIA H200", int(139.81 * GIB)),
        ("h100", int(79.10 * GIB)),
        ("RTX 4060", int(7.63 * GIB)),
        ("RTX 4060 Ti 16GB", int(15.58 * GIB)),
        ("NVIDIA H100 80GB HBM3", int(79.10 * GIB)),
        ("NVIDIA H100 PCIe", int(79.10 * GIB)),
        ("NVIDIA A100-SXM4-80GB", int(79.15 * GIB)),
        ("NVIDIA A100-PCIE-40GB", int(39.39 * GIB)),
        ("NVIDIA GeForce RTX 4090", int(23.53 * GIB)),
        ("NVIDIA RTX 6000 Ada Generation", int(47.38 * GIB)),
        ("Tesla V100-SXM2-16GB", int(15.77 * GIB)),
        ("NVIDIA L4 24GB", int(22.03 * GIB)),
        ("4090", int(23.53 * GIB)),
        ("RTX4070Ti", int(11.60 * GIB)),
        ("RTX 4070 Ti", int(11.60 * GIB)),
        ("NVIDIA GeForce RTX 4070 SUPER", int(11.60 * GIB)),
        ("RTX 3080", int(9.63 * GIB)),
        ("RTX 3080 12GB", int(11.63 * GIB)),
        ("RTX 2080", int(7.75 * GIB)),
        ("GB10", int(119.63 * GIB)),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", int(39.25 * GIB)),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", int(9.75 * GIB)),
        ("NVIDIA A100-SXM4-40GB MIG 2g.10gb", int(9.62 * GIB)),
        ("NVIDIA H200 MIG 1g.18gb", int(16.00 * GIB)),
        ("NVIDIA A30 MIG 1g.6gb", int(5.81 * GIB)),
        ("NVIDIA H20", int(94.99 * GIB)),
    ],
)
def test_a_gpu_is_known_by_size_or_by_name(text: str, total: int) -> None:
    assert abs(named_device(text).usable_bytes - total) <= 1


@pytest.mark.parametrize(
    ("text", "said", "named"),
    [
        ("A100", "several", "A100 40GB"),
        ("RTX 4060 Ti", "several", "RTX 4060 Ti 16GB"),
        ("RTX 5060 Ti", "several", "RTX 5060 Ti 8GB"),
        ("RTX 4090 Laptop", "no GPU named", "RTX 4090"),
        ("RTX 4000", "no GPU named", "RTX 4000 Ada"),
        ("RTX 6000", "no GPU named", "RTX PRO 6000"),
        ("RTX 4090 48GB", "no GPU named", "RTX 4090"),
        ("Voodoo 2", "no GPU named", "--gpu 24GiB"),
        ("", "no GPU", "--gpu 24GiB"),
    ],
)
def test_an_unknown_gpu_is_refused_with_similar_names(text: str, said: str, named: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        named_device(text)
    assert named in str(caught.value)


@pytest.mark.parametrize(("text", "meant"), [("24", "24GiB"), ("24G", "24GiB"), ("23.5 gi", "23.5GiB")])
def test_a_size_without_its_unit_gets_a_hint_with_it(text: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        named_device(text)
    assert caught.value.problems[0].hint == f"did you mean `--gpu {meant}`?"


@pytest.mark.parametrize("text", ["24", "Voodoo 2", "RTX 4000", "RTX", "GTX 1080"])
def test_a_hint_names_no_more_than_a_few(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        named_device(text)
    assert len(caught.value.problems[0].hint or "") < 160


def test_a_name_never_stands_for_another_card() -> None:
    """`RTX 4000` is not the `RTX 4000 Ada`: a word less is another card, or none."""
    for name in CATALOGUE:
        for word in name.split()[2:]:
            shorter = " ".join(part for part in name.split() if part != word)
            if re.fullmatch(r"\d+GB", word):
                continue
            try:
                found = named_device(shorter).name
            except ConfigError:
                assert shorter not in CATALOGUE
            else:
                assert re.sub(r" \d+GB", "", found) == re.sub(r" \d+GB", "", shorter)


@pytest.mark.parametrize("text", ["0GiB", "0 MiB", "0.001GiB"])
def test_a_gpu_without_memory_is_no_gpu(text: str) -> None:
    with pytest.raises(ConfigError, match="is not the size of a GPU"):
        named_device(text)


def test_every_gpu_of_the_catalogue_is_found_by_its_own_name() -> None:
    assert [named_device(name).name for name in CATALOGUE] == list(CATALOGUE)
