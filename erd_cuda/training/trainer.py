"""A whole training run: the lifter, then stage by stage, resumable after every epoch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from erd_cuda._files import remove_leftovers, write_text
from erd_cuda.evaluation.metrics import mpjpe
from erd_cuda.modules import ERD, Lifter
from erd_cuda.modules.lifters import is_known_lifter
from erd_cuda.modules.missing import place_missing_joints
from erd_cuda.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from erd_cuda.training.config import TrainConfig
from erd_cuda.training.device import (
    random_state,
    seed_generators,
    set_random_state,
    training_device,
)
from erd_cuda.training.loop import (
    Phase,
    make_optimizer,
    make_steps,
    restore_optimizer,
    train_epoch,
)
from erd_cuda.training.preparation import (
    check_data,
    lifter_for,
    lifter_hash,
    model_for,
    stream_seed,
    tensor_hash,
)
from erd_cuda.training.ranks import Ranks
from erd_cuda.training.report import EpochBar, TensorBoard, write_log
from erd_cuda.training.stages import StagedData, lifted_poses

if TYPE_CHECKING:
    from erd_cuda.data import PoseDataset

__all__ = ["TrainingInterrupted", "train"]

CHECKPOINT, CONFIG, LOG, MODEL = "checkpoint.pt", "config.json", "log.csv", "model.safetensors"


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training; the message says what is lost and what is kept.

    Attributes:
        resumable: Whether there is a checkpoint to continue from.
    """

    def __init__(self, message: str, resumable: bool) -> None:
        super().__init__(message)
        self.resumable = resumable


def train(
    config: TrainConfig,
    dataset: PoseDataset,
    out_dir: str | Path,
    *,
    lifter: nn.Module | Callable[[Tensor], Tensor] | None = None,
    held_out: PoseDataset | None = None,
    eval_every: int = 1,
    resume: bool = False,
    tensorboard: str | Path | None = None,
    progress: bool = True,
    device: torch.device | str = "cpu",
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> ERD:
    """Train a lifter and the stages of an ERD, greedily (paper, section 3.3).

    Stage k is trained with the lifter and all earlier stages frozen in eval mode. The schedule is
    fixed and the last epoch of the last stage is the result; ``held_out`` never influences it.

    The run leaves ``model.safetensors``, ``config.json``, ``log.csv`` and ``checkpoint.pt`` in
    ``out_dir``. The checkpoint is replaced after every epoch; a resumed run ends with the same
    model, bit for bit, as one that was never interrupted (on the same machine with the same number
    of threads). It may be resumed on another device, where dropout goes on with other numbers.
    torch's global random state, the CPU's and that of every GPU, is left as it was found.

    On a GPU the full batches of a phase, from the fourth on, are replays of CUDA graphs, of 32
    steps as long as there are so many; the first three, and the smaller batch that an epoch may end
    with, run step by step.

    Where torch.distributed has a default process group, its processes train together: each calls
    this with the same arguments but for ``device`` and takes its part of every batch, of which
    ``config`` gives the whole size. Up to rounding the losses and the model are those of one
    process. The first process alone writes and shows, all of them return the model, and a run may
    be resumed by another number of processes.

    Args:
        config: Architecture, schedule and seed.
        dataset: Training poses. If it has initial poses (:func:`with_predictions`), no lifter is
            trained or run: the stages begin with them, and the model has the given lifter or none.
        out_dir: Directory of the run, made if missing.
        lifter: A trained lifter to build the stages on; then no lifter is trained. Any module or
            function from ``(N, J, 2)`` px to ``(N, J, 3)`` mm relative to the root; the file has it
            only if it is one of this package's.
        held_out: Poses to show the error on every ``eval_every`` epochs; with initial poses if
            ``dataset`` has them.
        eval_every: See ``held_out``.
        resume: Continue the run in ``out_dir`` after its last finished epoch.
        tensorboard: Directory for TensorBoard event files, None for none.
        progress: Show progress on stderr.
        device: "cpu", "cuda" or "cuda:N". The data, and a given lifter, are moved there.
        on_epoch: Called after every epoch with its line of ``log.csv``.

    Returns:
        The trained model, in eval mode, on that device.

    Raises:
        ValueError: The data holds NaN or fewer than two poses, or does not fit the lifter; or only
            one of ``dataset`` and ``held_out`` has initial poses; or the
            checkpoint is of another run; or there is no such device, or it is a GPU and this build
            has no CUDA kernels.
        FileExistsError: ``out_dir`` holds a run and ``resume`` is False.
        FileNotFoundError: ``resume`` is True and there is nothing to resume.
        TrainingInterrupted: Ctrl-C; everything up to the last finished epoch is in the checkpoint.
    """
    device = training_device(device)
    check_data(dataset, lifter)
    if held_out is not None and (held_out.initial is None) != (dataset.initial is None):
        has = "dataset" if held_out.initial is None else "held_out"
        raise ValueError(
            f"of dataset and held_out only {has} has initial poses, expected them in both or in "
            "neither"
        )
    out = Path(out_dir)
    if not resume and (out / CHECKPOINT).exists():
        raise FileExistsError(
            f"{out} already holds a training run; resume it or choose another directory"
        )
    out.mkdir(parents=True, exist_ok=True)
    ranks = Ranks.of_this_process()
    gpus = [] if device.type == "cpu" else [device.index]
    current_gpu: AbstractContextManager[Any] = torch.cuda.device(device) if gpus else nullcontext()
    # Dropout draws from the global generator: it is the run's own while the run lasts.
    with torch.random.fork_rng(devices=gpus), current_gpu:
        run = _Run(config, dataset, out, lifter, resume, tensorboard, device, on_epoch, ranks)
        held_out = None if held_out is None else held_out.to(device)
        try:
            with nullcontext() if ranks is None else ranks.interrupts_noted():
                run.all_phases(held_out, eval_every, progress and run.leads)
        except KeyboardInterrupt:
            raise TrainingInterrupted(run.interrupted(), run.kept > 0) from None
        finally:
            run.board.close()
    erd = run.erd.eval()
    erd.notes = {
        "training": run.settings,
        "data": {
            "name": dataset.name,
            "subjects": list(dataset.subjects),
            "poses": len(dataset),
            "content_hash": run.data_hash,
        },
        "final_epochs": {
            record["phase"]: {"loss": record["loss"], "mpjpe": record["mpjpe"]}
            for record in run.history
        },
    }
    if run.leads:
        erd.save(out / MODEL, include_lifter=is_known_lifter(erd.lifter))
    return erd


class _Run:
    """The moving parts of one call of :func:`train`."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: PoseDataset,
        out: Path,
        lifter: nn.Module | Callable[[Tensor], Tensor] | None,
        resume: bool,
        tensorboard: str | Path | None,
        device: torch.device,
        on_epoch: Callable[[dict[str, Any]], None] | None,
        ranks: Ranks | None,
    ) -> None:
        self.ranks = ranks
        self.leads = ranks is None or ranks.rank == 0
        self.on_epoch = on_epoch
        self.config, self.dataset, self.out = config, dataset.to(device), out
        self.device = device
        self.data_hash = dataset.content_hash()
        self.lifter_hash = "" if lifter is None else lifter_hash(lifter, self.dataset)
        self.settings = config.to_dict()
        trains_lifter = lifter is None and dataset.initial is None
        if not trains_lifter:
            # What was not trained here has another history than this schedule.
            self.settings = {k: v for k, v in self.settings.items() if not k.startswith("lifter")}
        if lifter is not None:
            self.settings["given_lifter"] = self.lifter_hash
        if dataset.initial is not None:
            self.settings["given_poses"] = tensor_hash(dataset.initial)
        self.shuffle = torch.Generator()
        self.history: list[dict[str, Any]] = []
        self.position = "before the first epoch"
        seed_generators(device, stream_seed(config.seed, 0))
        # Begun on the CPU, so that every device starts from the same weights.
        if trains_lifter:
            lifter = lifter_for(config, dataset.to("cpu"))
        self.erd = model_for(config, dataset.to("cpu"), lifter).to(device)
        self.first_phase = 0 if trains_lifter else 1
        self.resumed: Checkpoint | None = None
        if resume:
            self.resumed = load_checkpoint(out / CHECKPOINT)
            self.resumed.check_matches(config, self.data_hash, self.lifter_hash, out / CHECKPOINT)
            self.erd.load_state_dict(self.resumed.model)
            self.history = self.resumed.history
            self.first_phase = self.resumed.phase
        elif self.leads:
            write_text(out / CONFIG, json.dumps(self.settings, indent=1) + "\n")
        self.kept = len(self.history)
        board = None if tensorboard is None or not self.leads else Path(tensorboard)
        self.board = TensorBoard(board, first_step=len(self.history))
        if self.leads:
            remove_leftovers(out)

    def all_phases(self, held_out: PoseDataset | None, eval_every: int, progress: bool) -> None:
        """The lifter unless it is done or given, then every stage that is not done."""
        erd, config = self.erd, self.config
        erd.eval()
        if self.first_phase == 0:
            assert isinstance(erd.lifter, Lifter)
            with torch.no_grad():
                inputs = erd.lifter.normalized(self._seen_keypoints()).contiguous()
                targets = erd.lifter.normalize_pose(self.dataset.pose).contiguous()
            phase = Phase(
                "lifter",
                erd.lifter,
                erd.lifter.regress,
                inputs,
                targets,
                erd.root_joint,
                erd.lifter.std3d.flatten(),
                config.lifter_epochs,
                config.lifter_batch_size,
                config.lifter_lr,
                config.lifter_lr_decay,
                decay_every=1,
            )

            def lifter_error() -> float:
                assert held_out is not None
                lifted = lifted_poses(erd, held_out)
                return mpjpe(lifted, held_out.pose, erd.root_joint).double().mean().item()

            self._fit(0, phase, None if held_out is None else lifter_error, eval_every, progress)
            del inputs, targets, phase
        erd.eval()
        sets = [self._staged(self.dataset)] + ([] if held_out is None else [self._staged(held_out)])
        for k in range(config.stages):
            for data in sets:
                data.prepare(k)
            if k + 1 >= self.first_phase:
                regressor = erd.regressors[k]
                phase = Phase(
                    f"stage {k + 1}",
                    regressor,
                    regressor,
                    sets[0].features,
                    sets[0].increments,
                    erd.root_joint,
                    None,
                    config.stage_epochs,
                    config.stage_batch_size,
                    config.stage_lr,
                    config.stage_lr_decay,
                    config.stage_decay_every,
                )
                if len(phase.inputs) < 2:
                    raise ValueError(
                        f"{phase.name} has fewer than two training poses whose root can be solved"
                    )
                error = None if held_out is None else (lambda k=k: sets[1].mpjpe(k))
                self._fit(k + 1, phase, error, eval_every, progress)
            for data in sets:
                data.advance(k)

    def _seen_keypoints(self) -> Tensor:
        """What the lifter sees, as in :meth:`ERD.lift`."""
        data = self.dataset
        if data.confidence is None:
            return data.keypoints
        return place_missing_joints(data.keypoints, data.confidence, self.erd.mean2d)

    def _staged(self, data: PoseDataset) -> StagedData:
        return StagedData(self.erd, data, lifted_poses(self.erd, data))

    def _fit(
        self,
        index: int,
        phase: Phase,
        held_out_error: Callable[[], float] | None,
        eval_every: int,
        progress: bool,
    ) -> None:
        first = 0
        if self.resumed is not None and self.resumed.phase == index:
            first = self.resumed.epoch
            optimizer = restore_optimizer(phase, self.resumed.optimizer)
            self.shuffle.set_state(self.resumed.shuffle)
            if self.resumed.device == self.device.type:
                set_random_state(self.device, self.resumed.dropout)
            else:
                seed_generators(self.device, stream_seed(self.config.seed, 2 * index + 2) + first)
        else:
            optimizer = make_optimizer(phase)
            self.shuffle.manual_seed(stream_seed(self.config.seed, 2 * index + 1))
            seed_generators(self.device, stream_seed(self.config.seed, 2 * index + 2))
        steps = make_steps(phase, optimizer, self.ranks)
        with EpochBar(phase, first, progress) as bar:
            for epoch in range(first, phase.epochs):
                self.position = f"in epoch {epoch + 1} of {phase.epochs} of {phase.name}"
                began = time.monotonic()
                result = train_epoch(phase, epoch, optimizer, self.shuffle, bar.step, steps)
                last = epoch + 1 == phase.epochs
                show = self.leads and (last or (epoch + 1) % eval_every == 0)
                record = {
                    "phase": phase.name,
                    "epoch": epoch + 1,
                    "lr": phase.lr_at(epoch),
                    "loss": result.loss,
                    "mpjpe": result.mpjpe,
                    "held_out_mpjpe": held_out_error() if show and held_out_error else None,
                    "seconds": round(time.monotonic() - began, 3),
                }
                self.history.append(record)
                self.board.epoch(record)
                if self.leads:
                    save_checkpoint(
                        self.out / CHECKPOINT, self._checkpoint(index, epoch + 1, optimizer)
                    )
                    write_log(self.out / LOG, self.history)
                self.kept = len(self.history)
                bar.epoch(record)
                if self.on_epoch is not None:
                    self.on_epoch(record)

    def _checkpoint(self, phase: int, epoch: int, optimizer: torch.optim.Optimizer) -> Checkpoint:
        return Checkpoint(
            config=self.config.to_dict(),
            data=self.data_hash,
            lifter=self.lifter_hash,
            phase=phase,
            epoch=epoch,
            model=self.erd.state_dict(),
            optimizer=optimizer.state_dict(),
            shuffle=self.shuffle.get_state(),
            dropout=random_state(self.device),
            history=self.history,
            device=self.device.type,
        )

    def interrupted(self) -> str:
        """What to tell the person who pressed Ctrl-C."""
        return (
            f"training was interrupted {self.position}; {self.kept} finished epochs are kept in "
            f"{self.out}"
        )
