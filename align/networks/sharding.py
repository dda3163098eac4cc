"""FSDP2: every network's weights, gradients and optimiser states spread over the processes, gathered block
by block when they are needed.

States on disk are whole tensors, so that they can be resumed by any number of processes.
"""

import copy
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def shard(network: nn.Module, device: torch.device) -> nn.Module:
    """Shard `network` over all processes in place, its blocks one by one and then the rest.

    A block is an entry of a list of modules right below the network: a UNet's `down_blocks` and `up_blocks`, a
    transformer's layers. The network may lie on the CPU: each process moves to `device` what it keeps.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for child in network.children():
        for block in child if isinstance(child, nn.ModuleList) else ():
            fully_shard(block, mesh=mesh)
    # By default the rest stays gathered after a pass without gradients, as it was,
    # whatever is done to the weights after.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    return network


def sync(role: nn.Module, on: bool) -> None:
    """Whether the next backward pass sums gradients over processes, for the network a role is stored in."""
    from torch.distributed.fsdp import FSDPModule

    for module in role.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(on, recurse=False)


def is_sharded(tensor: Any) -> bool:
    """Whether this is a part of a tensor that is spread over processes."""
    # Importing what says so takes seconds, and where nothing has, nothing is sharded.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded. Every process must call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A copy of a whole tensor where `parameter` is, and sharded as it is: this process's
    part alone goes to the device.
    """
    if not is_sharded(parameter):
        return tensor.to(parameter.device, copy=True)
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    mesh = parameter.device_mesh
    rows = -(-len(tensor) // mesh.size())  # `fully_shard` cuts the first dimension as torch.chunk does
    part = tensor[mesh.get_local_rank() * rows :][:rows].to(parameter.device, copy=True)
    return DTensor.from_local(part, mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride())


def first() -> bool:
    """Whether this is the process that writes files."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def gathered(tree: Any) -> Any:
    """Nested dicts and lists with every tensor whole, for the first process; the others get
    empty ones, or None for a tensor.

    Every process must call it. Sharded tensors are gathered one by one, each on the device first and
    then on the first process's CPU.
    """
    # torch.distributed.checkpoint.state_dict steps an optimiser that has no states yet: then
    # saving would change what is trained.
    if isinstance(tree, Tensor):
        whole = full(tree)
        return (whole.cpu() if is_sharded(tree) else whole) if first() else None
    if isinstance(tree, Mapping):
        mapping = {key: gathered(value) for key, value in tree.items()}
        return mapping if first() else {}
    if isinstance(tree, list):
        listed = [gathered(value) for value in tree]
        return listed if first() else []
    return tree


def load_optimizer(optimizer: Any, saved: Mapping[str, Any], parameters: Iterable[nn.Parameter]) -> None:
    """Give an optimiser of `parameters`, in their order, a copy of a state of whole tensors."""

    def copied(value: Any, parameter: Tensor) -> Any:
        per_element = isinstance(value, Tensor) and value.shape == parameter.shape
        return like(value, parameter) if per_element else copy.deepcopy(value)

    states = {
        i: {key: copied(value, parameter) for key, value in saved["state"][i].items()}
        for i, parameter in enumerate(parameters)
        if i in saved["state"]
    }
    optimizer.load_state_dict({**saved, "state": states})
