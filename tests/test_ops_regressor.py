"""The regressor's training operator against torch's own layers: values, gradients, dropout."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from philox import kept_units, philox4x32
from precision import assert_as_precise, assert_exact
from regressor_batches import NAMES, Batch, make_batch
from torch import Tensor

from erd_cuda.ops.regressor import draw_seeds, regress_batch

operators = torch.ops.erd_cuda

SIZES = [
    (2, 1, 8, 3),
    (3, 30, 24, 51),
    (33, 34, 7, 5),
    (200, 34, 256, 51),
    (600, 68, 40, 51),
    (9, 5, 300, 270),
]
BLOCKS = pytest.mark.parametrize("relu_block", [False, True], ids=["linear", "relu"])


def kept_by(batch: Batch) -> Tensor:
    rows, width = len(batch.tensors[0]), len(batch.tensors[2])
    return torch.from_numpy(kept_units(batch.seed, rows, width, batch.dropout))


def gradients(
    run: Callable[..., Tensor], tensors: tuple[Tensor, ...], grad: Tensor
) -> dict[str, Tensor]:
    found = torch.autograd.grad(run(*tensors), tensors, grad.to(tensors[0]))
    return dict(zip(NAMES, found, strict=True))


def output_gradient(batch: Batch) -> Tensor:
    shape = (len(batch.tensors[0]), len(batch.tensors[-1]))
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def passes_of(batch: Batch) -> Tensor:
    seed = torch.tensor([batch.seed], device=batch.tensors[0].device) if batch.dropout else None
    tensors = [t.detach() for t in batch.tensors]
    results = operators.regressor_forward(
        *tensors, seed, batch.dropout, batch.eps, batch.relu_block
    )
    passes: Tensor = results[5]
    return passes


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_tests_generator_gives_the_published_numbers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert tuple(philox4x32(np.array(counter, dtype=np.uint32), key)) == expected


@pytest.mark.parametrize("dropout", [1e-9, 0.25, 0.9])
@pytest.mark.parametrize(("rows", "width"), [(2, 8), (33, 7), (19, 256)])
def test_dropped_units_are_philoxs(rows: int, width: int, dropout: float, device: str) -> None:
    batch = make_batch(rows, 3, width, 2, dropout, seed=0x7EDC_BA98_7654_3210).to(device)
    # With a shift this large the ReLU is open everywhere.
    batch.tensors[4].data.fill_(1e3)
    passes = passes_of(batch).numpy(force=True)
    kept = kept_units(batch.seed, rows, width, dropout)
    assert ((passes[None] >> np.arange(3)[:, None, None] & 1) == kept).all()


@BLOCKS
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_gradients_are_the_layers(
    size: tuple[int, int, int, int], dropout: float, relu_block: bool, device: str
) -> None:
    batch = make_batch(*size, dropout, relu_block)
    kept, grad = kept_by(batch), output_gradient(batch)
    expected = batch.layers(kept).detach().numpy()
    truth = gradients(lambda *t: batch.layers(kept, *t), batch.tensors, grad)
    batch = batch.to(device)
    # Two rows are normalised to -1 and 1, whatever their distance: their gradients cancel.
    tolerance = 1e-7 if size[0] == 2 else 1e-12
    assert_exact(batch().increment.detach(), expected, tolerance)
    found = gradients(lambda *t: batch(*t).increment, batch.tensors, grad)
    assert (found.pop("b_in") == 0).all()
    for name, gradient in found.items():
        assert_exact(gradient, truth[name].numpy(), tolerance)


@BLOCKS
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_gradcheck(dropout: float, relu_block: bool, device: str) -> None:
    batch = make_batch(6, 4, 5, 3, dropout, relu_block).to(device)
    assert torch.autograd.gradcheck(lambda *t: batch(*t).increment, batch.tensors)


def test_every_floating_input_has_a_gradient() -> None:
    """The walk over the schema: none may be forgotten when one is added."""
    arguments = operators.regressor_forward.default._schema.arguments
    tensors = [a.name for a in arguments if str(a.type) == "Tensor"]
    assert tuple(tensors) == NAMES
    batch = make_batch(6, 4, 5, 3)
    for i, name in enumerate(NAMES):
        alone = [t.detach().requires_grad_(i == k) for k, t in enumerate(batch.tensors)]
        batch(*alone).increment.square().sum().backward()
        reference = torch.autograd.grad(batch().increment.square().sum(), batch.tensors[i])[0]
        for k, t in enumerate(alone):
            assert (t.grad is None) == (i != k)
        gradient = alone[i].grad
        assert gradient is not None and torch.equal(gradient, reference), name


@BLOCKS
def test_float32_is_as_precise_as_torchs(relu_block: bool, device: str) -> None:
    batch = make_batch(200, 34, 256, 51, 0.25, relu_block)
    kept, grad = kept_by(batch), output_gradient(batch)
    single = batch.to(torch.float32)
    # The truth for the rounded numbers, with the ReLUs open where the operator's are: a value that
    # rounding pushes across 0 is no error of the gradient.
    exact = single.to(torch.float64)
    expected = exact.layers(kept)
    assert_as_precise(
        single.to(device)().increment,
        single.layers(kept).detach(),
        expected.detach().numpy(),
    )
    truth = gradients(lambda *t: exact.layers(kept, *t), exact.tensors, grad)
    peers = gradients(lambda *t: single.layers(kept, *t), single.tensors, grad)
    found = gradients(lambda *t: single.to(device)(*t).increment, single.to(device).tensors, grad)
    for name in NAMES:
        if name != "b_in":
            assert_as_precise(found[name], peers[name], truth[name].numpy(), factor=3.0)


@pytest.mark.parametrize("rows", [200, 5000])
def test_statistics_keep_their_digits_next_to_a_large_mean(rows: int, device: str) -> None:
    batch = make_batch(rows, 34, 16, 4)
    batch.tensors[0].data.add_(300.0)
    single = batch.to(torch.float32)
    exact = single.to(torch.float64).tensors
    z = torch.nn.functional.linear(exact[0], exact[1], exact[2]).detach()
    norm = torch.nn.BatchNorm1d(16, momentum=1.0)
    norm(torch.nn.functional.linear(single.tensors[0], single.tensors[1], single.tensors[2]))
    assert norm.running_mean is not None and norm.running_var is not None
    result = single.to(device)()
    assert_as_precise(result.mean, norm.running_mean, z.mean(0).numpy())
    assert_as_precise(result.variance, norm.running_var, z.var(0).numpy())
    assert z.mean(0).abs().max() > 100 * z.std(0).max()


def test_dropout_keeps_the_right_share_independently(device: str) -> None:
    rows, width, dropout = 1000, 256, 0.25
    batch = make_batch(rows, 3, width, 2, dropout, seed=77).to(device)
    batch.tensors[4].data.fill_(1e3)
    passes = passes_of(batch).numpy(force=True)
    kept = (passes[None] >> np.arange(3)[:, None, None] & 1).astype(np.float64)
    spread = np.sqrt(dropout * (1 - dropout))
    centred = (kept - (1 - dropout)) / spread
    assert abs(centred.mean()) < 5 / np.sqrt(kept.size)
    assert np.abs(centred.mean(axis=1)).max() < 5.5 / np.sqrt(rows)
    assert np.abs(centred.mean(axis=2)).max() < 5.5 / np.sqrt(width)
    # Correlations between layers, neighbouring rows and neighbouring units.
    pairs = [
        centred[0] * centred[1],
        centred[0] * centred[2],
        centred[1] * centred[2],
        centred[:, 1:] * centred[:, :-1],
        centred[..., 1:] * centred[..., :-1],
        centred[..., 4:] * centred[..., :-4],
    ]
    for products in pairs:
        assert abs(products.mean()) < 5 / np.sqrt(products.size)


def test_dropout_keeps_the_expected_value(device: str) -> None:
    """With linear blocks the mean over many masks is the network without dropout."""
    batch = make_batch(8, 3, 12, 4).to(device)
    expected = batch().increment.detach()
    draws = [Batch(batch.tensors, 0.5, seed=seed)().increment.detach() for seed in range(600)]
    stacked = torch.stack(draws)
    error = (stacked.mean(0) - expected) / (stacked.std(0) / len(draws) ** 0.5)
    assert error.abs().max() < 5


def test_torchs_seed_decides_what_is_dropped(device: str) -> None:
    batch = make_batch(8, 3, 12, 4).to(device)

    def draw() -> Tensor:
        return regress_batch(*batch.tensors, dropout=0.5).increment.detach()

    torch.manual_seed(5)
    first, second = draw(), draw()
    torch.manual_seed(5)
    assert torch.equal(draw(), first) and torch.equal(draw(), second)
    assert not torch.equal(first, second)
    seeds = {int(draw_seeds(torch.device(device))) for _ in range(50)}
    assert len(seeds) == 50 and max(seeds) > 2**60


def test_without_dropout_no_random_number_is_drawn() -> None:
    batch = make_batch(8, 3, 12, 4)
    before = torch.get_rng_state()
    regress_batch(*batch.tensors, dropout=0.0)
    assert torch.equal(torch.get_rng_state(), before)


@BLOCKS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_threads_change_no_bit(
    dtype: torch.dtype, relu_block: bool, set_threads: Callable[[int], None]
) -> None:
    batch = make_batch(203, 34, 72, 51, 0.25, relu_block).to(dtype)
    grad = output_gradient(batch)
    results = []
    for threads in (1, 2, 5):
        set_threads(threads)
        found = gradients(lambda *t: batch(*t).increment, batch.tensors, grad)
        results.append([*batch(), *found.values()])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


def test_layouts_do_not_matter(device: str) -> None:
    batch = make_batch(9, 5, 8, 3, 0.25).to(device)
    plain = gradients(lambda *t: batch(*t).increment.sum(dim=1), batch.tensors, torch.ones(9))
    wide = [t.detach() for t in batch.tensors]
    wide[0] = torch.stack((wide[0], wide[0]), dim=-1)[..., 0]
    wide[5] = wide[5].T.contiguous().T
    strided = tuple(t.requires_grad_() for t in wide)
    # The gradient of a sum is one number, expanded.
    found = torch.autograd.grad(batch(*strided).increment.sum(), strided)
    for name, gradient in zip(NAMES, found, strict=True):
        assert torch.equal(gradient, plain[name]), name


def test_nan_stays_visible(device: str) -> None:
    batch = make_batch(9, 5, 8, 3).to(device)
    tensors = [t.detach().clone() for t in batch.tensors]
    tensors[0][4, 2] = float("nan")
    assert batch(*tensors).increment.isnan().all(), "one NaN is in every statistic"


def test_a_second_derivative_is_refused() -> None:
    batch = make_batch(9, 5, 8, 3)
    (gradient,) = torch.autograd.grad(
        batch().increment.square().sum(), batch.tensors[0], create_graph=True
    )
    with pytest.raises(RuntimeError, match="has first derivatives only; a second was asked for"):
        gradient.sum().backward()


def test_forward_mode_raises_rather_than_answers_zero() -> None:
    batch = make_batch(9, 5, 8, 3)
    features, *others = (t.detach() for t in batch.tensors)
    with pytest.raises(NotImplementedError, match="forward"):
        torch.func.jvp(
            lambda x: batch(x, *others).increment, (features,), (torch.ones_like(features),)
        )


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_compiled_with_any_number_of_rows(dropout: float) -> None:
    batch = make_batch(9, 5, 8, 3, dropout)
    compiled = torch.compile(
        lambda *t: batch(*t).increment, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for rows in (9, 5):
        tensors = (batch.tensors[0].detach()[:rows].requires_grad_(), *batch.tensors[1:])
        grad = output_gradient(batch)[:rows]
        expected = gradients(lambda *t: batch(*t).increment, tensors, grad)
        found = gradients(compiled, tensors, grad)
        for name in NAMES:
            torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    batch = make_batch(5, 4, 6, 3, 0.25).to(dtype)
    tensors = [t.detach() for t in batch.tensors]
    for dropout, relu_block in ((0.25, True), (0.0, False)):
        seed = torch.tensor([3]) if dropout else None
        forward = (*tensors, seed, dropout, 1e-5, relu_block)
        torch.library.opcheck(operators.regressor_forward.default, forward)
        results = operators.regressor_forward(*forward)
        x, w_in, _, gamma, _, w0, _, w1, _, w_out, _ = tensors
        saved = (x, w_in, gamma, w0, w1, w_out, *results[3:])
        for wanted in (0, 0b1111111111, 0b0010000010):
            backward = (torch.randn_like(results[0]), *saved, dropout, wanted)
            torch.library.opcheck(operators.regressor_backward.default, backward)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout": 0.25}, "a seed is needed exactly when there is dropout"),
        ({"features": torch.zeros(1, 5)}, "at least two rows"),
        ({"gamma": torch.zeros(9)}, "gamma must have 8 elements, it has 9"),
        ({"w_out": torch.zeros(3, 8, dtype=torch.float64)}, "w_out has another dtype"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
    ],
    ids=str,
)
def test_the_operator_refuses_what_does_not_fit(change: dict[str, object], message: str) -> None:
    tensors = [t.detach() for t in make_batch(9, 5, 8, 3).to(torch.float32).tensors]
    arguments: dict[str, object] = dict(zip(NAMES, tensors, strict=True))
    arguments |= {"seed": None, "dropout": 0.0, "eps": 1e-5, "relu_block": False} | change
    with pytest.raises(RuntimeError, match=message):
        operators.regressor_forward(**arguments)
