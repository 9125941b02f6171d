"""No 32-bit index arithmetic in the kernels: 2^31 elements are a batch of 40 million poses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCES = sorted(
    path
    for path in (Path(__file__).resolve().parents[1] / "csrc" / "cuda").iterdir()
    if path.suffix in {".cu", ".cuh", ".h"}
)

GRID = r"\b(?:blockIdx|gridDim)\.x"
FINDINGS = {
    # As in blockIdx.x * blockDim.x; the first factor decides in how many bits a product is.
    "a product that begins with 32 bits": re.compile(
        r"(?<!\* )(?<!int64_t\{)\b(?:blockIdx|gridDim|blockDim)\.x\s*\*"
    ),
    # As in kTile * blockIdx.x.
    "a factor of 32 bits in front": re.compile(rf"\b(?!int64_t)\w+\s*\*\s*{GRID}"),
    # As in const int tile = blockIdx.x.
    "a block's number in 32 bits": re.compile(
        rf"\b(?:int|unsigned|u?int32_t|auto)\s+\w+\s*=\s*(?![^;]*int64_t)[^;]*{GRID}"
        rf"|<(?:int|unsigned|u?int32_t)>\(\s*{GRID}|\bu?int(?:32_t)?\{{{GRID}"
    ),
}


def findings(text: str) -> list[str]:
    code = re.sub(r"//[^\n]*", "", text)
    return [
        f"{what}: {match[0]}" for what, rule in FINDINGS.items() for match in rule.finditer(code)
    ]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_indices_have_64_bits(source: Path) -> None:
    assert findings(source.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "int64_t i = blockIdx.x * blockDim.x + threadIdx.x;",
        "i += blockDim.x * gridDim.x;",
        "const int64_t first = kTile * blockIdx.x;",
        "const int tile = blockIdx.x;",
        "auto tile = blockIdx.x + 1;",
        "f(static_cast<int>(blockIdx.x));",
        "f(int{gridDim.x});",
    ],
)
def test_what_the_rules_find(line: str) -> None:
    assert findings(line)


@pytest.mark.parametrize(
    "line",
    [
        "int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;",
        "i += int64_t{gridDim.x} * blockDim.x * 4;",
        "for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {",
        "const int64_t first = int64_t{blockIdx.x} * kTile;",
        "const auto first = int64_t{blockIdx.x} * kTile;",
        "// blockIdx.x * blockDim.x would overflow",
    ],
)
def test_what_the_rules_let_pass(line: str) -> None:
    assert findings(line) == []
