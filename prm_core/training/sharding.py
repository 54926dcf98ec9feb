"""A model on the processes of a launcher: whole on each (DDP), or each with a share of every weight (FSDP) or of the
optimizer's state alone (ZeRO); and its state as one process has it, however it is spread.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor, nn

Sharding = Literal["none", "full"]
# In an optimizer's state: weights in float32, of which those of the model are the rounded ones.
MASTERS = "masters"


@contextmanager
def spread(model: nn.Module, accelerator: Accelerator, sharding: Sharding) -> Iterator[nn.Module]:
    """The model as all processes train it together; gradients are averaged over them.

    Args:
        model: the same on each. With full sharding its own weights are empty as long as the block lasts, and what was
            trained when it ends without an error; else they are those that are trained.
        sharding: counts where there are several processes.
    """
    if sharding == "none" or accelerator.num_processes == 1:
        yield accelerator.prepare_model(model)
        return
    working = _sharded(model, accelerator)
    own = dict(model.named_parameters())
    for parameter in own.values():
        parameter.data = parameter.data.new_empty(0)
    yield accelerator.prepare_model(working, evaluation_mode=True)
    for name, values in working.named_parameters():
        own[name].data = whole(values.detach())


def _sharded(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The same structure, with a share of each weight: layer by layer, and the rest as one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Not its tensors, which would need the memory of two models.
    tensors = itertools.chain(model.parameters(), model.buffers())
    working = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    layers = {name for module in working.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    for module in list(working.modules()):
        # A head apart: under adapters it has another precision than what else is trained.
        if type(module).__name__ in layers or module is getattr(working, "head", None):
            fully_shard(module, mesh=mesh)
    fully_shard(working, mesh=mesh)
    return working


def accumulating(model: nn.Module, accelerator: Accelerator, *, last: bool) -> AbstractContextManager[None]:
    """Around a backward pass of a spread model: processes exchange gradients in an update's last one."""
    if is_sharded(model):
        model.set_requires_gradient_sync(last)
        return nullcontext()
    return nullcontext() if last else accelerator.no_sync(model)


def is_sharded(model: nn.Module) -> bool:
    """Whether each process has a share of its weights."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def whole(values: Any) -> Any:
    """A tensor that is spread over processes, put together, which all must ask for; anything else as it is."""
    from torch.distributed.tensor import DTensor

    return values.full_tensor() if isinstance(values, DTensor) else values


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """A spread model's state on the CPU, as that of one process, tied weights once; all processes must ask for it."""
    state = unwrapped(model).state_dict(keep_vars=True)
    first = {id(values): name for name, values in reversed(state.items())}
    return {name: whole(state[name].detach()).cpu().contiguous() for name in reversed(first.values())}


def load_whole(model: nn.Module, path: Path) -> None:
    """Gives a spread model the state in a safetensors file; tied weights stand there once."""
    from safetensors.torch import load_file

    state, inner = load_file(path), unwrapped(model)
    every = inner.state_dict(keep_vars=True)
    given = {name: values for name, values in every.items() if name in state}
    known = {id(values) for values in given.values()}
    missing = [name for name, values in every.items() if id(values) not in known]
    if missing or len(given) < len(state):
        raise RuntimeError(f"{path} is of another model: {missing or sorted(state.keys() - given.keys())}")
    inner.load_state_dict({name: _like(values, state[name]) for name, values in given.items()}, strict=False)


def adamw(
    groups: list[dict[str, Any]], accelerator: Accelerator, sharding: Sharding, **settings: Any
) -> torch.optim.Optimizer:
    """AdamW of weights that are whole on each process, with the same gradients; with full sharding each of several
    processes has the state of a share of them, changes those, and sends them to the others.

    Weights of 16 bits are changed through masters of 32: a step of a usual rate is less than half of what lies between
    two numbers of theirs (of SmolLM2-135M in bfloat16, at 2e-6, for 99 weights of 100), and would be rounded away.

    Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", stage 1.
    """
    import torch

    pairs = [(parameter, parameter.detach().float()) for group in groups for parameter in group["params"]
             if parameter.dtype in (torch.bfloat16, torch.float16)]
    masters = {id(parameter): master for parameter, master in pairs}
    groups = [{**group, "params": [masters.get(id(parameter), parameter) for parameter in group["params"]]}
              for group in groups]
    if sharding == "none" or accelerator.num_processes == 1:
        return _through_masters(torch.optim.AdamW(groups, **settings), pairs)
    from torch.distributed.optim import ZeroRedundancyOptimizer

    class Shared(ZeroRedundancyOptimizer):
        def state_dict(self) -> dict[str, Any]:
            # That of one process, on the first, which writes it.
            self.consolidate_state_dict(to=0)
            return super().state_dict() if self.rank == 0 else {}

    return _through_masters(Shared(groups, torch.optim.AdamW, **settings), pairs)


def _through_masters(
    optimizer: torch.optim.Optimizer, pairs: Sequence[tuple[nn.Parameter, Tensor]]
) -> torch.optim.Optimizer:
    """Has an optimizer of masters, which are part of its state, change the parameters that they stand for.

    Args:
        pairs: parameter, and its master.
    """
    if not pairs:
        return optimizer

    def take_gradients(*_: Any) -> None:
        for parameter, master in pairs:
            master.grad = None if parameter.grad is None else parameter.grad.float()

    def give_weights(*_: Any) -> None:
        for parameter, master in pairs:
            parameter.data.copy_(master)
            master.grad = None

    def put_in(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, MASTERS: [master for _, master in pairs]}

    def take_out(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        for (_, master), saved in zip(pairs, state[MASTERS], strict=True):
            master.copy_(saved)
        return {name: values for name, values in state.items() if name != MASTERS}

    optimizer.register_step_pre_hook(take_gradients)
    optimizer.register_step_post_hook(give_weights)
    optimizer.register_state_dict_post_hook(put_in)
    optimizer.register_load_state_dict_pre_hook(take_out)
    return optimizer


def keep_whole(optimizer: torch.optim.Optimizer) -> None:
    """Has an optimizer of sharded weights give and take the state that it would have on one process."""

    def put_together(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "state": {index: {name: whole(values) for name, values in own.items()}
                                   for index, own in state["state"].items()}}

    def share_out(own: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        parameters = [parameter for group in own.param_groups for parameter in group["params"]]
        return {**state, "state": {index: {
            name: _like(parameters[index], values) if getattr(values, "ndim", 0) else values
            for name, values in found.items()} for index, found in state["state"].items()}}

    optimizer.register_state_dict_post_hook(put_together)
    optimizer.register_load_state_dict_pre_hook(share_out)


def _like(spread_out: Tensor, values: Tensor) -> Tensor:
    """Whole values, spread over the processes as others are."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(spread_out, DTensor):
        return values
    return distribute_tensor(values.to(spread_out.device), spread_out.device_mesh, spread_out.placements)


def unwrapped(model: nn.Module) -> nn.Module:
    """A spread model without what exchanges gradients around it: its own attributes, and names of its weights."""
    from torch.nn.parallel import DistributedDataParallel

    return model.module if isinstance(model, DistributedDataParallel) else model
