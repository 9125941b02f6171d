"""Training on a GPU: captured steps, the choice of the device, checkpoints that change device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_training import held_out_set, run, small_config
from torch import nn

from erd_cuda import ResidualRegressor
from erd_cuda.evaluation import evaluate
from erd_cuda.training import captured as captured_module
from erd_cuda.training import device as device_module
from erd_cuda.training import trainer
from erd_cuda.training.captured import CapturedSteps
from erd_cuda.training.checkpoints import load_checkpoint, save_checkpoint
from erd_cuda.training.device import seed_generators, training_device
from erd_cuda.training.fused import FusedSteps
from erd_cuda.training.loop import (
    Phase,
    make_optimizer,
    make_steps,
    restore_optimizer,
    train_epoch,
)


def phase_of(module: nn.Module, samples: int, device: str = "cpu") -> Phase:
    generator = torch.Generator().manual_seed(3)
    return Phase(
        name="test",
        module=module.to(device),
        forward=module,
        inputs=torch.randn(samples, 34, generator=generator).to(device),
        targets=100 * torch.randn(samples, 51, generator=generator).to(device),
        root_joint=0,
        unit=None,
        epochs=3,
        batch_size=20,
        lr=0.01,
        lr_decay=0.5,
        decay_every=1,
    )


class GraphOnTheCpu:
    """Stands in for torch.cuda where `CapturedSteps` asks for streams and graphs.

    As on a GPU, what is captured does not run, and a replay runs it.

    Attributes:
        eager: sizes of the batches that ran as they are.
        replays: sizes of the batches of every replay.
        captures: (stream, device) of every capture.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.eager: list[int] = []
        self.replays: list[list[int]] = []
        self.captures: list[tuple[Any, Any]] = []
        self._graph: Any = None
        self._replaying = False
        self._guard: Any = None
        main = SimpleNamespace(wait_stream=lambda other: None)
        monkeypatch.setattr(
            torch.cuda, "Stream", lambda device: SimpleNamespace(wait_stream=lambda other: None)
        )
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "device", self._device)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", self._new_graph)
        monkeypatch.setattr(torch.cuda, "graph", self._capture)
        for kind in (FusedSteps, captured_module._GatheredSteps):
            monkeypatch.setattr(kind, "take", self._recorded(kind.take))

    def _recorded(self, take: Callable[[Any, int], None]) -> Callable[[Any, int], None]:
        def take_or_capture(steps: Any, rows: int) -> None:
            if self._graph is not None:
                self._graph.calls.append((steps, rows))
                return
            (self.replays[-1] if self._replaying else self.eager).append(rows)
            take(steps, rows)

        return take_or_capture

    @contextmanager
    def _device(self, device: Any) -> Iterator[None]:
        self._guard = device
        yield
        self._guard = None

    def _new_graph(self) -> Any:
        graph = SimpleNamespace(calls=[])

        def replay() -> None:
            self._replaying = True
            self.replays.append([])
            for steps, rows in graph.calls:
                steps.take(rows)
            self._replaying = False

        graph.replay = replay
        return graph

    @contextmanager
    def _capture(self, graph: Any, stream: Any = None) -> Iterator[None]:
        self.captures.append((stream, self._guard))
        self._graph = graph
        yield
        self._graph = None


@pytest.fixture
def graph_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> GraphOnTheCpu:
    monkeypatch.setattr(captured_module, "STEPS_IN_A_RUN", 4)
    return GraphOnTheCpu(monkeypatch)


def other_network() -> nn.Module:
    """One that the stages' operator is not for."""
    return nn.Sequential(nn.Linear(34, 16), nn.Dropout(0.5), nn.Linear(16, 51))


@pytest.mark.parametrize("samples", [207, 200, 101, 7])
@pytest.mark.parametrize("kind", ["stage", "other"])
def test_captured_steps_are_those_of_the_loop(
    kind: str, samples: int, graph_on_the_cpu: GraphOnTheCpu
) -> None:
    module = ResidualRegressor(34, width=16) if kind == "stage" else other_network()
    plain_phase, phase = phase_of(module, samples), phase_of(copy.deepcopy(module), samples)
    plain, optimizer = make_optimizer(plain_phase), make_optimizer(phase)
    by_step = make_steps(plain_phase, plain)
    steps = CapturedSteps(phase, optimizer)
    shuffles = [torch.Generator().manual_seed(9) for _ in range(2)]
    seen: list[list[int]] = []
    for epoch in range(3):
        torch.manual_seed(epoch)
        expected = train_epoch(plain_phase, epoch, plain, shuffles[0], None, by_step)
        graph_on_the_cpu.eager.clear()
        torch.manual_seed(epoch)
        seen.append([])
        shown = lambda done, loss, mpjpe: seen[-1].append(done)  # noqa: E731
        assert train_epoch(phase, epoch, optimizer, shuffles[1], shown, steps) == expected
        assert seen[-1][-1] == phase.steps
    full, rest = divmod(samples, 20)
    assert graph_on_the_cpu.eager == ([rest] if rest > 1 else [])
    replays = [[20] * 4] * (full // 4) + [[20]] * (full % 4)
    assert graph_on_the_cpu.replays[len(graph_on_the_cpu.replays) - len(replays) :] == replays
    assert sum(map(len, graph_on_the_cpu.replays)) == max(3 * full - 3, 0)
    # In the last epoch there are no warm-up steps: runs of four, then one at a time.
    runs = list(range(4, full + 1, 4))
    assert seen[-1] == [*runs, *range(full // 4 * 4 + 1, phase.steps + 1)]
    # One of a run and one of a step, on their own stream: torch's for captures may be one of
    # another GPU.
    own = (steps._side_stream, phase.inputs.device)
    assert graph_on_the_cpu.captures == ([own] * 2 if full > 3 else [])
    for ours, theirs in zip(
        phase.module.state_dict().values(), plain_phase.module.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_an_optimizer_keeps_its_own_settings_when_it_is_restored() -> None:
    phase = phase_of(nn.Linear(34, 51), 40)
    optimizer = make_optimizer(phase)
    train_epoch(phase, 2, optimizer, torch.Generator().manual_seed(1))
    state = optimizer.state_dict()
    # As a GPU's optimiser is saved.
    state["param_groups"][0] |= {"capturable": True, "lr": torch.tensor(0.5)}
    restored = restore_optimizer(phase, state)
    assert restored.param_groups[0]["capturable"] is False
    assert restored.param_groups[0]["lr"] == phase.lr
    for parameter in phase.module.parameters():
        for name, value in optimizer.state[parameter].items():
            assert torch.equal(restored.state[parameter][name], value)


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("tpu", "device is 'tpu', expected 'cpu', 'cuda' or 'cuda:N'"),
        ("meta", "device is 'meta', expected 'cpu', 'cuda' or 'cuda:N'"),
        (None, "device is 'None', expected 'cpu', 'cuda' or 'cuda:N'"),
        pytest.param(
            "cuda",
            "device is 'cuda', but torch finds no CUDA GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        pytest.param("cuda:99", "torch finds only .* CUDA GPUs here", marks=pytest.mark.cuda),
    ],
)
def test_devices_that_are_not_there(tmp_path: Path, device: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path / "run", device=device)
    assert not (tmp_path / "run").exists()


def test_a_build_without_gpu_kernels_is_noticed_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(device_module, "build_info", lambda: {"cuda": False})
    with pytest.raises(
        ValueError, match="device is 'cuda', but this build of erd_cuda has no CUDA kernels"
    ):
        run(tmp_path / "run", device="cuda")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(device_module, "build_info", lambda: {"cuda": True})
    assert training_device("cuda") == torch.device("cuda", 0)


@pytest.fixture
def seeded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked of torch.cuda's generators: a device for each seeding of one, "all" for all."""
    calls: list[Any] = []
    guards: list[Any] = ["no device"]

    @contextmanager
    def guard(device: Any) -> Iterator[None]:
        guards.append(device)
        yield
        guards.pop()

    monkeypatch.setattr(torch.cuda, "device", guard)
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: calls.append((guards[-1], seed)))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: calls.append("all"))
    return calls


def test_a_run_on_the_cpu_seeds_no_gpu(tmp_path: Path, seeded: list[Any]) -> None:
    torch.manual_seed(77)
    assert seeded == ["all"]  # torch's own, so that the test can fail
    before = torch.get_rng_state()
    run(tmp_path, small_config(stages=1))
    train_last_epoch_again(tmp_path, device="cuda", dropout=torch.zeros(16, dtype=torch.uint8))
    run(tmp_path, small_config(stages=1), resume=True)
    assert seeded == ["all"]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_on_a_gpu_seeds_that_one_and_the_cpu(seeded: list[Any]) -> None:
    device = torch.device("cuda", 1)
    seed_generators(device, 5)
    assert seeded == [(device, 5)]
    assert torch.initial_seed() == 5


def train_last_epoch_again(out: Path, **changes: Any) -> None:
    """Takes the last epoch out of a run's checkpoint, whose weights keep it."""
    checkpoint = load_checkpoint(out / "checkpoint.pt")
    checkpoint.epoch -= 1
    checkpoint.history.pop()
    save_checkpoint(out / "checkpoint.pt", replace(checkpoint, **changes))


def test_a_checkpoint_of_another_device_is_continued(tmp_path: Path) -> None:
    config = small_config(stages=1)
    before = run(tmp_path, config).state_dict()
    # A GPU's generator has another state, which the CPU's would not take.
    train_last_epoch_again(tmp_path, device="cuda", dropout=torch.zeros(16, dtype=torch.uint8))
    after = run(tmp_path, config, resume=True).state_dict()
    assert not torch.equal(
        after["regressors.0.output.weight"], before["regressors.0.output.weight"]
    )
    checkpoint = load_checkpoint(tmp_path / "checkpoint.pt")
    assert (checkpoint.device, checkpoint.epoch, len(checkpoint.history)) == ("cpu", 2, 4)


def test_the_old_checkpoint_format_still_loads(tmp_path: Path) -> None:
    run(tmp_path, small_config(stages=1, stage_epochs=1))
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del content["device"]
    torch.save(content, tmp_path / "checkpoint.pt")
    assert load_checkpoint(tmp_path / "checkpoint.pt").device == "cpu"


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["linear", "relu", "other"])
def test_a_replayed_epoch_is_an_eager_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same losses and weights, with the same random numbers."""
    monkeypatch.setattr(captured_module, "STEPS_IN_A_RUN", 4)
    stage = kind != "other"
    module = ResidualRegressor(34, width=64, block=kind) if stage else other_network()
    phases = [phase_of(copy.deepcopy(module), 307, "cuda") for _ in range(2)]
    optimizers = [make_optimizer(phase) for phase in phases]
    shuffles = [torch.Generator().manual_seed(9) for _ in phases]
    eager = FusedSteps(phases[0], optimizers[0]) if stage else None
    steps = CapturedSteps(phases[1], optimizers[1])
    for epoch in range(3):
        torch.manual_seed(epoch)
        expected = train_epoch(phases[0], epoch, optimizers[0], shuffles[0], None, eager)
        torch.manual_seed(epoch)
        result = train_epoch(phases[1], epoch, optimizers[1], shuffles[1], None, steps)
        assert result.loss == pytest.approx(expected.loss, rel=1e-5)
        assert result.mpjpe == pytest.approx(expected.mpjpe, rel=1e-5)
    assert sorted(steps._graphs) == [1, 4]
    states = [phase.module.state_dict() for phase in phases]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.cuda
def test_a_gpus_first_losses_are_the_cpus() -> None:
    module = ResidualRegressor(34, width=64, dropout=0.0)
    losses = []
    for device in ("cpu", "cuda"):
        phase = phase_of(copy.deepcopy(module), 200, device)
        optimizer = make_optimizer(phase)
        steps = None if device == "cpu" else CapturedSteps(phase, optimizer)
        shuffle = torch.Generator().manual_seed(9)
        losses.append(train_epoch(phase, 0, optimizer, shuffle, None, steps).loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.cuda
@pytest.mark.parametrize("changes", [{}, {"root": "solve", "pca": 10}], ids=str)
def test_a_whole_run_on_a_gpu(tmp_path: Path, changes: dict[str, Any]) -> None:
    torch.cuda.manual_seed(77)
    before = torch.cuda.get_rng_state()
    on_gpu = run(tmp_path / "gpu", small_config(**changes), device="cuda", held_out=held_out_set())
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert next(on_gpu.parameters()).device.type == "cuda"
    on_cpu = run(tmp_path / "cpu", small_config(**changes))
    errors = [
        evaluate(model.cpu(), held_out_set(), roots=("given",)).mean_over_poses("given")
        for model in (on_gpu, on_cpu)
    ]
    torch.testing.assert_close(errors[0], errors[1], rtol=0.1, atol=0)


def states_of_all_gpus() -> list[torch.Tensor]:
    return [torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())]


@pytest.mark.cuda
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_random_states_are_left_as_they_were(tmp_path: Path, device: str) -> None:
    torch.cuda.manual_seed_all(77)
    torch.rand(3, device="cuda")
    before = states_of_all_gpus()
    run(tmp_path, small_config(stages=1), device=device)
    for ours, theirs in zip(states_of_all_gpus(), before, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_captures_on_two_gpus() -> None:
    """On the second one with the first one current, after a capture there."""
    module = ResidualRegressor(34, width=64, dropout=0.0)
    losses = []
    for device in ("cuda:0", "cuda:1"):
        phase = phase_of(copy.deepcopy(module), 200, device)
        optimizer = make_optimizer(phase)
        steps = CapturedSteps(phase, optimizer)
        shuffle = torch.Generator().manual_seed(9)
        losses.append(train_epoch(phase, 0, optimizer, shuffle, None, steps).loss)
        assert sorted(steps._graphs) == [1]
    assert losses[1] == losses[0]


@pytest.mark.cuda
def test_a_run_begun_on_a_gpu_ends_on_a_cpu(tmp_path: Path) -> None:
    config = small_config(stages=1)
    run(tmp_path, config, device="cuda")
    assert load_checkpoint(tmp_path / "checkpoint.pt").device == "cuda"
    train_last_epoch_again(tmp_path)
    erd = run(tmp_path, config, resume=True)
    assert next(erd.parameters()).device.type == "cpu"


@pytest.mark.cuda
@pytest.mark.parametrize("lost_phase", ["lifter", "last stage"])
def test_a_run_resumed_on_a_gpu_ends_with_the_same_bits(
    tmp_path: Path, lost_phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in its second epoch: the captured steps begin anew, warm-up and all."""
    config = small_config(stages=1)
    expected = run(tmp_path / "whole", config, device="cuda").state_dict()
    finished = 1 if lost_phase == "lifter" else 3
    epochs = []

    def interrupted(*arguments: Any) -> Any:
        if len(epochs) == finished:
            raise KeyboardInterrupt
        epochs.append(None)
        return train_epoch(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "train_epoch", interrupted)
        with pytest.raises(trainer.TrainingInterrupted):
            run(tmp_path / "parts", config, device="cuda")
    resumed = run(tmp_path / "parts", config, device="cuda", resume=True).state_dict()
    assert len(load_checkpoint(tmp_path / "parts" / "checkpoint.pt").history) == 4
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), name
