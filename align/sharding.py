"""FSDP2: every network's weights, gradients and optimiser states spread over the processes, gathered block by block when they are needed.

States on disk are whole tensors, so that they can be resumed by any number of processes.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(network: nn.Module, device: torch.device) -> nn.Module:
    """Shard `network` over all processes in place, its blocks one by one and then the rest.

    A block is an entry of a list of modules right below the network: a UNet's `down_blocks` and `up_blocks`, a transformer's layers.
    The network may lie on the CPU: each process moves to `device` what it keeps.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for child in network.children():
        for block in child if isinstance(child, nn.ModuleList) else ():
            fully_shard(block, mesh=mesh)
    # By default the rest stays gathered after a pass without gradients, as it was, whatever is done to the weights after.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    return network


def sync(role: nn.Module, on: bool) -> None:
    """Whether the next backward pass sums gradients over processes, for the network a role is stored in."""
    for module in role.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(on, recurse=False)


@contextmanager
def whole(network: nn.Module) -> Iterator[None]:
    """Within: each process holds all of the network's parameters. Every process must enter it."""
    parts = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.unshard()
    yield
    for part in parts:
        part.reshard()


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded. Every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, sharded as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return tensor.to(parameter)
    whole = tensor.to(parameter.device, parameter.dtype)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def full_tree(tree: Any) -> Any:
    """`full` of every tensor in nested dicts and lists, in one order on all processes."""
    if isinstance(tree, Tensor):
        return full(tree)
    if isinstance(tree, Mapping):
        return {key: full_tree(value) for key, value in tree.items()}
    return [full_tree(value) for value in tree] if isinstance(tree, list) else tree


def load_optimizer(optimizer: Any, saved: Mapping[str, Any], parameters: Iterable[nn.Parameter]) -> None:
    """Give an optimiser of `parameters`, in their order, a state of whole tensors."""
    states = {
        i: {
            key: like(value, parameter) if isinstance(value, Tensor) and value.shape == parameter.shape else value
            for key, value in saved["state"][i].items()
        }
        for i, parameter in enumerate(parameters)
        if i in saved["state"]
    }
    optimizer.load_state_dict({**saved, "state": states})
