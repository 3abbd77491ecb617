"""The processes that train together: one alone, or several started by ``torchrun``, on one machine or many.

Training in a team equals training alone: every process draws the whole batch of a step, takes its share, and gradients
are averaged (DistributedDataParallel). What couples the samples of a batch is made global too: batch norm takes its
statistics, and dropout draws its masks, over the shares of all.
"""

from __future__ import annotations

import contextvars
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from MITSGANLib.errors import DependencyError, InputError, MITSGANError
from MITSGANLib.runtime.devices import resolve_device
from torch import nn

Item = TypeVar("Item")
Result = TypeVar("Result")

# One process validates and writes while the others wait for it.
_PATIENCE = datetime.timedelta(hours=2)
# Set while the leader works and the others wait: whatever it calls then must not ask for them.
_working_alone: contextvars.ContextVar[bool] = contextvars.ContextVar("working_alone", default=False)


@dataclass(frozen=True)
class Team:
    """This process's place among those that train together. Every method but ``share`` must be called by all."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and logs."""
        return self.rank == 0

    def check_batch(self, batch_size: int) -> None:
        """:raises InputError: when a batch cannot be divided equally, with the sizes that can."""
        if batch_size % self.size:
            below = batch_size // self.size * self.size
            sizes = " or ".join(str(size) for size in (below, below + self.size) if size)
            counts = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
            raise InputError(
                f"A batch of {batch_size} cannot be divided among {self.size} processes; set training.batch_size to "
                f"{sizes}, or start {', '.join(map(str, counts))} processes."
            )

    def share(self, samples: Sequence[Item]) -> Sequence[Item]:
        """This process's part of the samples of a step."""
        count = len(samples) // self.size
        return samples[self.rank * count : (self.rank + 1) * count]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        together = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(together, dist.ReduceOp.MAX)
        return bool(together)

    def on_leader(self, work: Callable[[], Result]) -> Result:
        """The leader's result of ``work``; an error is raised in all, so that none waits for ever."""
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        own: Exception | None = None
        if self.leads:
            token = _working_alone.set(True)
            try:
                outcome[0] = work()
            except Exception as error:  # noqa: BLE001 - raised below, here and elsewhere
                own = error
                # Ours can be pickled; of others only the text is sure to be.
                outcome[1] = error if isinstance(error, MITSGANError) else RuntimeError(str(error))
            finally:
                _working_alone.reset(token)
        dist.broadcast_object_list(outcome, src=0, device=self.device)
        if own or outcome[1]:
            raise own or outcome[1]
        return outcome[0]

    def prepare(self, module: nn.Module) -> nn.Module:
        """The module on this device; in a team its batch norm and dropout span all processes."""
        module.to(self.device)
        if self.size > 1:
            if self.device.type == "cuda":
                module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
            _replace(module, nn.modules.batchnorm._BatchNorm, TeamBatchNorm.like)
            _replace(module, nn.Dropout, lambda layer: TeamDropout(layer.p, self))
        return module

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module as training calls it: in a team, gradients are averaged as they are computed."""
        if self.size == 1:
            return module
        devices = [self.device.index] if self.device.type == "cuda" else None
        wrapped = nn.parallel.DistributedDataParallel(module, device_ids=devices)
        # Buffers stay equal by themselves, and sending them would change them between two passes of one step. The
        # argument for it has another name from PyTorch 2.13 on; the attribute works in all.
        wrapped.broadcast_buffers = False
        return wrapped


@contextmanager
def join_team(device: str = "auto") -> Iterator[Team]:
    """This process's team: as the environment of ``torchrun`` says, else alone.

    :param device: "auto", "cpu" or "cuda"; in a team each process takes the GPU of its local rank.
    :raises DependencyError: when a device or torch.distributed is asked for and is not there.
    """
    where = resolve_device(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Team(where)
        return
    if not dist.is_available():
        raise DependencyError(
            "This PyTorch has no torch.distributed; train with one process, or install another build."
        )
    if where.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise DependencyError(
                f"Process {local} of this machine has no GPU of its own; start at most "
                f"{torch.cuda.device_count()} per machine, or add --device cpu."
            )
        where = torch.device("cuda", local)
        torch.cuda.set_device(where)
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Team(where, dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def mean_over_team(value: torch.Tensor) -> torch.Tensor:
    """The average of ``value`` over all processes, differentiable; ``value`` itself in a process that works alone.

    For losses that are no mean over samples (a logarithm of a mean, say): take the global mean first.
    """
    in_team = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return _SumOverTeam.apply(value) / dist.get_world_size() if in_team and not _working_alone.get() else value


class _SumOverTeam(torch.autograd.Function):
    """Sum over processes. What each process's loss gains by it flows back to all, so gradients are summed as well."""

    @staticmethod
    def forward(_context: Any, value: torch.Tensor) -> torch.Tensor:
        total = value.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _SumOverTeam.apply(gradient)


class TeamBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm with the statistics of all processes' shares, on the CPU, where torch's SyncBatchNorm does not run."""

    @classmethod
    def like(cls, layer: nn.modules.batchnorm._BatchNorm) -> nn.Module:
        """A layer with the same parameters and statistics; SyncBatchNorm stays what it is."""
        if isinstance(layer, cls | nn.SyncBatchNorm):
            return layer
        new = cls(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        new.weight, new.bias = layer.weight, layer.bias
        new.running_mean, new.running_var = layer.running_mean, layer.running_var
        new.num_batches_tracked = layer.num_batches_tracked
        return new.train(layer.training)

    def _check_input_dim(self, _input: torch.Tensor) -> None:
        """Any number of dimensions will do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize (n, channels, ...) by the statistics of all processes' shares together."""
        if not self.training:
            return super().forward(x)
        dims = [0, *range(2, x.dim())]
        # Two passes, as a variance from sums of squares loses digits; shares are of equal size.
        mean = mean_over_team(x.mean(dims, keepdim=True))
        variance = mean_over_team((x - mean).square().mean(dims, keepdim=True))
        self._follow(mean.detach().flatten(), variance.detach().flatten(), x.numel() // x.shape[1])
        shape = mean.shape
        normalized = (x - mean) / (variance + self.eps).sqrt()
        return normalized * self.weight.view(shape) + self.bias.view(shape)

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        count *= dist.get_world_size()
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


class TeamDropout(nn.Module):
    """Dropout with one mask for the whole batch, drawn alike in each process; each share takes its part."""

    def __init__(self, p: float, team: Team) -> None:
        super().__init__()
        self.p, self._team = p, team

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        keep = x.new_empty(len(x) * self._team.size, *x.shape[1:]).bernoulli_(1 - self.p).div_(1 - self.p)
        return x * self._team.share(keep)


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """The module with its parameters held: gradients pass through what runs in this block, and none reaches them.

    A loss that goes through another learner's network uses this with the network itself, not with the wrapped one of
    ``networks``: in a team, the wrapped one would wait for gradients of its own.
    """
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield module
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _replace(module: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module]) -> None:
    for name, child in module.named_children():
        if isinstance(child, kind):
            setattr(module, name, make(child))
        else:
            _replace(child, kind, make)
