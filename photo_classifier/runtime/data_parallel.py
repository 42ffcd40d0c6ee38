"""Training one model in several processes: mean gradients, batch norm's statistics and equal weights.

In a run of one process every function leaves the model as it is.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from photo_classifier.runtime import launcher
from photo_classifier.runtime.distributed import all_reduce


def wrap_ddp(
    model: nn.Module, device: torch.device, sync_batch_norm: bool = False, in_passes: bool = False
) -> nn.Module:
    """Returns the model for training, whose gradients are averaged over all processes.

    With `in_passes` that is left to `average_gradients`, after the last pass of a step.
    A process whose slice of a batch is empty gets `(0, 1)` logits and contributes gradients of zero.
    With `sync_batch_norm`, trained batch norm normalises over the whole batch (GPUs only).
    """
    if launcher.world_size() == 1:
        return model
    if sync_batch_norm:
        model = with_sync_batch_norm(model)
    if in_passes:
        broadcast_model(model)
        return _Slice(model)
    devices = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():
        # newer releases of torch rename the option, older ones know only this name
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        # each process keeps its own statistics until `average_statistics`
        return nn.parallel.DistributedDataParallel(_Slice(model), devices, broadcast_buffers=False, static_graph=True)


def average_gradients(model: nn.Module) -> None:
    """Averages gradients that were added up over several passes, which DistributedDataParallel does in each of them.

    Its `no_sync` does not work with a static graph.
    """
    if launcher.world_size() == 1:
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    own = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    mean = all_reduce(torch.cat([grad.flatten() for grad in own])) / launcher.world_size()
    for grad, values in zip(own, mean.split([grad.numel() for grad in own]), strict=True):
        grad.copy_(values.view_as(grad))


def with_sync_batch_norm(model: nn.Module) -> nn.Module:
    """Returns a copy that shares the model's tensors and whose trained batch norm is synchronised."""
    from timm.layers import convert_sync_batchnorm  # also converts timm's batch norm with an activation

    tensors = [*model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    frozen = {id(inner) for module in getattr(twin, "frozen", []) for inner in module.modules()}
    for name, module in list(twin.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and id(module) not in frozen:
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, convert_sync_batchnorm(module))
    return twin


def average_statistics(model: nn.Module) -> None:
    """Averages batch norm's running statistics over all processes, each of which sees only its own slices.

    They are linear in the statistics of the batches, so averaging more often does not change a later average.
    """
    if launcher.world_size() == 1:
        return
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.running_mean is not None]
    buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    if not buffers:
        return
    # in 64 bits the mean of equal numbers is that number, for any number of processes
    mean = all_reduce(torch.cat([buffer.double() for buffer in buffers])) / launcher.world_size()
    for buffer, values in zip(buffers, mean.split([len(buffer) for buffer in buffers]), strict=True):
        buffer.copy_(values)


def broadcast_model(model: nn.Module) -> None:
    """Copies the main process's weights and statistics to all processes."""
    if launcher.world_size() == 1:
        return
    for tensor in model.state_dict().values():
        torch.distributed.broadcast(tensor, src=0)


class _Slice(nn.Module):
    """Runs a model on this process's slice of a batch, which may be empty."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images):
            return self.model(images)
        zeros = [parameter.sum() * 0 for parameter in self.model.parameters() if parameter.requires_grad]
        return torch.stack(zeros).sum().view(1, 1)[:0]
