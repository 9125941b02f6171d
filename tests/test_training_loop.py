"""The epoch loop against one written out with torch's unfused Adam."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from erd_cuda.training import TrainConfig
from erd_cuda.training.loop import Phase, make_optimizer, train_epoch


def phase_of(module: nn.Module, samples: int, batch_size: int, unit: torch.Tensor | None) -> Phase:
    generator = torch.Generator().manual_seed(3)
    return Phase(
        name="test",
        module=module,
        forward=module,
        # float64: a bias before batch norm has no gradient but rounding, which Adam blows up.
        inputs=torch.randn(samples, 6, generator=generator, dtype=torch.float64),
        targets=torch.randn(samples, 12, generator=generator, dtype=torch.float64),
        root_joint=1,
        unit=unit,
        epochs=3,
        batch_size=batch_size,
        lr=0.01,
        lr_decay=0.5,
        decay_every=2,
    )


def network() -> nn.Module:
    torch.manual_seed(2)
    layers = nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 12))
    return layers.double()


@pytest.mark.parametrize("unit", [None, torch.rand(12) + 0.5])
def test_three_epochs_are_those_of_a_plain_loop(unit: torch.Tensor | None) -> None:
    module = network()
    reference = copy.deepcopy(module).train()
    phase = phase_of(module, samples=50, batch_size=8, unit=unit)
    optimizer, shuffle = make_optimizer(phase), torch.Generator().manual_seed(9)
    plain = torch.optim.Adam(reference.parameters(), lr=0.01, foreach=False, fused=False)
    order = torch.Generator().manual_seed(9)
    for epoch, lr in enumerate((0.01, 0.01, 0.005)):
        result = train_epoch(phase, epoch, optimizer, shuffle)
        losses, distances = [], []
        plain.param_groups[0]["lr"] = lr
        for batch in torch.randperm(50, generator=order).split(8):
            output, target = reference(phase.inputs[batch]), phase.targets[batch]
            loss = nn.functional.mse_loss(output, target)
            plain.zero_grad()
            loss.backward()
            plain.step()
            losses.append(loss.item())
            error = (output - target) * (1 if unit is None else unit)
            joints = error.detach().reshape(-1, 4, 3)
            distances.append((joints - joints[:, 1:2]).norm(dim=-1).mean().item())
        assert len(losses) == phase.steps == 7
        assert result.loss == pytest.approx(sum(losses) / 7, rel=1e-9)
        assert result.mpjpe == pytest.approx(sum(distances) / 7, rel=1e-9)
    for ours, theirs in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_a_last_batch_of_one_sample_is_left_out() -> None:
    phase = phase_of(network(), samples=17, batch_size=8, unit=None)
    assert phase.steps == 2
    train_epoch(phase, 0, make_optimizer(phase), torch.Generator().manual_seed(0))
    assert phase_of(network(), samples=18, batch_size=8, unit=None).steps == 3
    assert phase_of(network(), samples=16, batch_size=8, unit=None).steps == 2


def test_sums_are_handed_out_after_every_batch() -> None:
    phase = phase_of(network(), samples=24, batch_size=8, unit=None)
    seen = []

    def on_step(done: int, loss_sum: torch.Tensor, mpjpe_sum: torch.Tensor) -> None:
        seen.append((done, loss_sum.item() / done, mpjpe_sum.item() / done))

    shuffle = torch.Generator().manual_seed(0)
    result = train_epoch(phase, 0, make_optimizer(phase), shuffle, on_step)
    assert [step for step, _, _ in seen] == [1, 2, 3]
    assert seen[-1][1:] == (result.loss, result.mpjpe)


def test_the_defaults_are_the_papers_schedule() -> None:
    config = TrainConfig()
    assert (config.stages, config.width, config.block, config.features) == (
        4,
        256,
        "linear",
        "residual",
    )
    assert (config.lifter_width, config.lifter_blocks, config.dropout) == (1024, 2, 0.25)
    assert (config.lifter_epochs, config.lifter_batch_size) == (200, 200)
    assert (config.lifter_lr, config.lifter_lr_decay) == (1e-3, 0.96)
    assert (config.stage_epochs, config.stage_batch_size) == (5, 200)
    assert (config.stage_lr, config.stage_lr_decay, config.stage_decay_every) == (1e-3, 0.96, 2)
    assert config.root == "given" and config.pca is None


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("stages", 0, "stages must be at least 1, got 0"),
        ("lifter_epochs", -1, "lifter_epochs must be at least 1, got -1"),
        ("stage_batch_size", 1, r"stage_batch_size must be at least 2 \(batch norm .*\), got 1"),
        ("lifter_lr", float("nan"), "lifter_lr must be positive, got nan"),
        ("stage_lr_decay", 1.5, r"stage_lr_decay must be in \(0, 1\], got 1.5"),
        ("dropout", 1.0, r"dropout must be in \[0, 1\), got 1.0"),
        ("pca", 0, "pca must be at least 1, got 0"),
        ("seed", -1, r"seed must be in \[0, 2\*\*32\), got -1"),
        ("block", "tanh", "block must be one of linear, relu, got 'tanh'"),
        ("features", "depth", "features must be one of residual, concat, .*, got 'depth'"),
        ("root", "true", "root must be one of given, solve, solve_each_stage, got 'true'"),
    ],
)
def test_bad_settings_get_one_sentence(field: str, value: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**{field: value})  # type: ignore[arg-type]
