"""Packed weights kept between eval forwards, and how it is found out that they are old.

Folding takes milliseconds and the fused op microseconds, so a model packs once and asks before
each use whether a parameter, a buffer or a layer has changed since. That question reads version
counters and addresses, which is impossible inside a compiled graph; there the weights of the last
eval(), to() or load_state_dict() are used.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from operator import attrgetter, is_
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from erd_cuda.modules.packed import CPU_PRECISIONS, TENSOR_CORE_PRECISIONS, PackedRegressors

_Self = TypeVar("_Self", bound="PackingModule")
_version = attrgetter("_version")
_fused_steps = 0


def _count_fused_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    # The fused optimizers write parameters without raising their version counters.
    global _fused_steps
    if any(group.get("fused") for group in optimizer.param_groups):
        _fused_steps += 1


register_optimizer_step_post_hook(_count_fused_step)


class WeightCache:
    """A model's packed weights together with what they were made from.

    Args:
        owner: the model.
        sources: names of the owner's submodules and buffers that went into the weights.
    """

    def __init__(self, owner: PackingModule, sources: tuple[str, ...]) -> None:
        # Enough to tell inside a compiled graph whether the parameters are still the same objects.
        self.probe = next(owner.regressors.parameters())
        self._fused_steps = _fused_steps
        entries = [entry for name in sources for entry in _entries(owner, name)]
        self._registries = [registry for registry, _ in entries]
        self._names = [name for _, name in entries]
        # Holding the objects themselves keeps a new one from getting an old one's address.
        self._members = [registry.get(name) for registry, name in entries]
        tensors = [member for member in self._members if isinstance(member, Tensor)]
        # Tensors made under inference_mode have no version counter.
        self._counted = [tensor for tensor in tensors if not tensor.is_inference()]
        self._versions = list(map(_version, self._counted))
        # Subclasses (fake tensors, say) need not have memory.
        self._placed = [t for t in tensors if type(t) in (Tensor, nn.Parameter)]
        try:
            self._addresses = list(map(Tensor.data_ptr, self._placed))
        except RuntimeError as error:
            raise RuntimeError(
                "torch.func transforms of the stages' weights need ERD.stage or train mode: in "
                "eval mode they are packed, and packed weights have no gradient and no vmap."
            ) from error
        # After all of this, so that what changes meanwhile is found changed.
        self.weights = owner.packed()
        if self.weights.w_in.is_cuda:
            # Now, because a compiled graph could not, and all, because which one it will ask for is
            # unknown yet: some 15 ms on a CPU for the paper's sizes, mostly for "split".
            for precision in TENSOR_CORE_PRECISIONS:
                self.weights.for_tensor_cores(precision)
        else:
            for precision in CPU_PRECISIONS:
                self.weights.for_cpu(precision)

    def is_fresh(self) -> bool:
        """Whether the sources are, by version counter, what they were at packing.

        A write through ``.data`` does not raise the counter and is not seen, nor is the replay of
        a CUDA graph in which an optimizer's step was captured: call ``eval()`` after these.
        """
        # One call of map for all of them: a Python loop here takes longer than a small refine.
        return (
            self._fused_steps == _fused_steps
            and all(map(is_, map(dict.get, self._registries, self._names), self._members))
            and list(map(_version, self._counted)) == self._versions
            and list(map(Tensor.data_ptr, self._placed)) == self._addresses
        )


class PackingModule(nn.Module):
    """A module that owns regressors and keeps their packed weights up to date in eval mode."""

    regressors: nn.ModuleList
    _packing_sources: tuple[str, ...]

    def __init__(self) -> None:
        super().__init__()
        self._cache: WeightCache | None = None
        self.register_load_state_dict_post_hook(_refresh_after_load)

    @abstractmethod
    def packed(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> PackedRegressors:
        """The regressors' weights, packed now."""

    def train(self: _Self, mode: bool = True) -> _Self:
        """Switch to train or eval mode; eval() packs the weights."""
        super().train(mode)
        self._refresh()
        return self

    def __getstate__(self) -> dict[str, Any]:
        # The cache is worth nothing to a copy, whose parameters are other objects.
        return {**self.__dict__, "_cache": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._refresh()

    def _apply(self: _Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Self:
        super()._apply(fn, recurse)
        self._refresh()
        return self

    def _cached_weights(self) -> PackedRegressors:
        """The packed weights, packed anew if something has changed."""
        cache = self._cache
        if torch.compiler.is_compiling():
            # The graph reads the cached tensors afresh at every call. Under functional_call the
            # parameters are not the cache's, and packing becomes part of the graph; an export
            # swaps them too while it traces, but for themselves.
            own = next(self.regressors.parameters())
            if cache is not None and (torch.compiler.is_exporting() or cache.probe is own):
                return cache.weights
            return self.packed()
        if cache is None or not cache.is_fresh():
            cache = self._cache = self._packed_cache()
        return cache.weights

    def _refresh(self) -> None:
        self._cache = None if self.training else self._packed_cache()

    def _packed_cache(self) -> WeightCache:
        # Made under inference_mode, the weights could not be saved for a later backward.
        with torch.inference_mode(False):
            return WeightCache(self, self._packing_sources)


def _refresh_after_load(module: nn.Module, incompatible_keys: Any) -> None:
    # A function of the module and not a method: hooks are copied and pickled with the model.
    assert isinstance(module, PackingModule)
    module._refresh()


def _entries(owner: nn.Module, name: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Where the owner and its parts look up what lies under ``name``."""
    if name in owner._buffers:
        yield owner._buffers, name
        return
    yield owner._modules, name
    part = owner._modules.get(name)
    for module in () if part is None else part.modules():
        for registry in (module._modules, module._parameters, module._buffers):
            for member in registry:
                yield registry, member
