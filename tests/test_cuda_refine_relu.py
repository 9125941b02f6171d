"""The relu block on tensor cores: the layout of its weights, and its kernel run on the CPU."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cuda_bench import needs_emulation, run_tests
from numpy.typing import NDArray

from erd_cuda._fragments import Fragments
from erd_cuda._fragments_relu import relu_fragments

Array = NDArray[np.float32]

# The first to run builds the emulated library.
pytestmark = pytest.mark.timeout(1800)


@needs_emulation
def test_kernel() -> None:
    run_tests(["tests/emulated_refine_relu.py"], device=80, seed=10)


@pytest.mark.parametrize(("device", "seed"), [(86, 11)])
@needs_emulation
def test_kernel_in_other_shared_memories(device: int, seed: int) -> None:
    """The block's tile and the ring of weights are as large as the device allows."""
    selection = "150 or itself and residual or 31 and fp16 or 512 and split"
    run_tests(["tests/emulated_refine_relu.py", "-k", selection], device=device, seed=seed)


@needs_emulation
def test_kernel_makes_no_invalid_access() -> None:
    run_tests(
        ["tests/emulated_refine_relu.py", "-k", "31 and fp16 or bad_samples"],
        flavour="asan",
        seed=13,
    )


class Weights:
    """Random weights of the relu block, J = 5, H = 48, K = 2."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)

        def normal(*shape: int, scale: float = 0.05) -> Array:
            return rng.normal(scale=scale, size=shape).astype(np.float32)

        self.w_in, self.b_in = normal(2, 48, 10), normal(2, 48)
        self.w_hidden, self.b_hidden = normal(2, 2, 48, 48, scale=1e-3), normal(2, 2, 48)
        self.w_out, self.b_out = normal(2, 15, 48, scale=20.0), normal(2, 15)

    def arranged(self, precision: str) -> Fragments:
        hidden = self.w_hidden, self.b_hidden
        return relu_fragments(self.w_in, self.b_in, *hidden, self.w_out, self.b_out, precision)

    def layers(self, stage: int) -> list[Array]:
        return [self.w_in[stage], *self.w_hidden[stage], self.w_out[stage]]


def numbers(bits: NDArray[np.uint16], precision: str) -> NDArray[np.float64]:
    if precision == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return bits.view(np.float16).astype(np.float64)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "split"])
def test_weights_lie_where_the_header_says(precision: str) -> None:
    """Reads each weight back, one by one, and undoes the scales."""
    weights = Weights()
    made = weights.arranged(precision)
    parts = 2 if precision == "split" else 1
    flat, biases = numbers(made.weights, precision), made.biases.astype(np.float64)
    steps, pairs = (1, 3, 3, 3), (3, 3, 3, 1)
    position, bias_position = 0, 0
    for stage in range(2):
        scales = biases[bias_position : bias_position + 4]
        for i, layer in enumerate(weights.layers(stage)):
            found = np.zeros((16 * pairs[i], 16 * steps[i]))
            for step, part, pair in itertools.product(
                range(steps[i]), range(parts), range(pairs[i])
            ):
                for g, t, side, half, neighbour in itertools.product(
                    range(8), range(4), range(2), range(2), range(2)
                ):
                    at = ((step * parts + part) * pairs[i] + pair) * 256
                    at += (4 * g + t) * 8 + side * 4 + half * 2 + neighbour
                    row, column = 16 * pair + 8 * side + g, 16 * step + 8 * half + 2 * t + neighbour
                    found[row, column] += flat[position + at]
            position += steps[i] * pairs[i] * parts * 256
            # What the kernel computes is scale * sum; inputs carry their own scale.
            before = made.feature_scale if i == 0 else activation_scale(made.biases, weights)
            after = 1.0 if i == 3 else activation_scale(made.biases, weights)
            found *= scales[i] * before / after
            error = np.abs(found[: layer.shape[0], : layer.shape[1]] - layer).max()
            assert (
                error < np.abs(layer).max() * {"fp16": 2e-3, "bf16": 1e-2, "split": 1e-6}[precision]
            )
            found[: layer.shape[0], : layer.shape[1]] = 0
            assert (found == 0).all()
        bias_position += 4 + 3 * 48 + 16
    assert position == len(flat) and bias_position == len(biases)


def activation_scale(biases: Array, weights: Weights) -> float:
    """What the hidden biases, and so the activations, are multiplied by."""
    ratio = biases[4 : 4 + 48] / weights.b_in[0]
    assert (ratio == ratio[0]).all()
    return float(ratio[0])


def test_biases_lie_where_the_header_says() -> None:
    weights = Weights()
    made = weights.arranged("fp16")
    scale = activation_scale(made.biases, weights)
    for stage, row in enumerate(made.biases.reshape(2, -1)):
        hidden = np.concatenate([weights.b_in[stage], *weights.b_hidden[stage]])
        assert np.array_equal(row[4 : 4 + 3 * 48], hidden * np.float32(scale))
        assert np.array_equal(row[-16:-1], weights.b_out[stage])
        assert row[-1] == 0


def test_powers_of_two_only() -> None:
    """Scales must not round anything."""
    weights = Weights()
    made = weights.arranged("split")
    scales = [made.feature_scale, *made.biases.reshape(2, -1)[:, :4].ravel()]
    assert all(np.frexp(scale)[0] == 0.5 for scale in scales)


def test_extreme_weights_do_not_break_the_scales() -> None:
    weights = Weights()
    weights.w_hidden[:] = 0
    weights.w_out[:] = np.float32(1e-40)
    weights.w_in[0, 0, 0] = np.inf
    made = weights.arranged("fp16")
    assert np.isfinite(made.biases).all()
    assert (made.biases.reshape(2, -1)[:, :4] > 0).all()
