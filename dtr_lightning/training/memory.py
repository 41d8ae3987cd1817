"""The memory of a training step, counted on the meta device: no GPU and no memory is needed.

Counted are the weights, the gradients, AdamW's two moments and the average, in float32, and what a
forward pass keeps for the backward one. On top come what is held for an instant (a gradient of the
widest layer), the library's workspace and the fragments of its allocator.
"""

__all__ = ["StepMemory", "kept_for_backward", "step_memory"]

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from dtr_lightning.models import Denoiser

FLOAT = 4  # bytes
PRODUCTS = {F.linear, F.conv1d, F.conv2d, torch.matmul, torch.bmm}  # in bf16 under autocast
NORMS = {F.layer_norm, F.group_norm, torch.softmax, F.softmax}  # in float32


class StepMemory(NamedTuple):
    """Bytes on one GPU in a training step; what is frozen has no gradient and no moments."""

    weights: int
    gradients: int
    moments: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        """The sum of all five."""
        return sum(self)


class _FusedAttention(torch.autograd.Function):
    """What fused attention keeps: q, k, v, its output, and a float32 of each query and head."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Any:
        raise NotImplementedError("only what a forward pass keeps is counted")


class _AsOnAGPU(TorchFunctionMode):
    """Does on the meta device what CUDA does: attention is fused and, if asked, bf16 autocast."""

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        self.autocast = autocast
        self.copies: dict[int, Tensor] = {}  # of weights: autocast keeps one of each

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self.autocast and function in PRODUCTS | {F.scaled_dot_product_attention}:
            args = [self._cast(x, torch.bfloat16) for x in args]
            kwargs = {key: self._cast(x, torch.bfloat16) for key, x in kwargs.items()}
        elif self.autocast and function in NORMS:
            args = [self._cast(x, torch.float32) for x in args]
            kwargs = {key: self._cast(x, torch.float32) for key, x in kwargs.items()}
        elif self.autocast and function is torch.addcmul:
            widest = torch.float32 if any(_is(x, torch.float32) for x in args) else torch.bfloat16
            args = [self._cast(x, widest) for x in args]
        if function is F.scaled_dot_product_attention:
            return _FusedAttention.apply(*args[:3])
        return function(*args, **kwargs)

    def _cast(self, x: Any, dtype: torch.dtype) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == dtype:
            return x
        if not isinstance(x, nn.Parameter):
            return x.to(dtype)
        return self.copies.setdefault(id(x), x.to(dtype))


def _is(x: Any, dtype: torch.dtype) -> bool:
    return isinstance(x, Tensor) and x.dtype == dtype


class _Kept:
    """The storages that autograd keeps, each once; those of weights and buffers are not counted."""

    def __init__(self, model: nn.Module) -> None:
        own = (*model.parameters(), *model.buffers())
        self.storages = {id(s): s for s in (x.untyped_storage() for x in own)}
        self.bytes = 0

    def pack(self, x: Tensor) -> Tensor:
        """Counts what is kept."""
        storage = x.untyped_storage()  # one Python object for as long as one is referred to
        if id(storage) not in self.storages:
            self.storages[id(storage)] = storage
            self.bytes += storage.nbytes()
        return x


def kept_for_backward(
    model: Denoiser, inputs: Sequence[Tensor], precision: str = "bf16-mixed"
) -> int:
    """Returns the bytes that model(*inputs) keeps for the backward pass, all on the meta device.

    Of blocks under activation checkpointing these are their inputs, and the activations of the
    largest of them, which are computed again one block at a time.
    """
    largest = [0]
    kept = _Kept(model)

    def enter(block: nn.Module, _: Any) -> None:
        before[block] = kept.bytes

    def leave(block: nn.Module, *_: Any) -> None:
        largest[0] = max(largest[0], kept.bytes - before.pop(block))

    # of a network, or of its parts
    switches = [m for m in model.modules() if getattr(m, "use_checkpoint", False)]
    before: dict[nn.Module, int] = {}
    blocks = model.checkpointed()
    hooks = [block.register_forward_pre_hook(enter) for block in blocks]
    hooks += [block.register_forward_hook(leave) for block in blocks]
    training = model.training
    model.train()
    try:
        for switch in switches:
            switch.use_checkpoint = False
        _forward(model, inputs, precision, kept)
        if not switches:
            return kept.bytes
        for hook in hooks:
            hook.remove()
        for switch in switches:
            switch.use_checkpoint = True
        again = _Kept(model)
        _forward(model, inputs, precision, again)
        return again.bytes + largest[0]
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
        for switch in switches:
            switch.use_checkpoint = True


def _forward(model: Denoiser, inputs: Sequence[Tensor], precision: str, kept: _Kept) -> None:
    hooks = torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda x: x)
    with torch.enable_grad(), hooks, _AsOnAGPU(precision == "bf16-mixed"):
        model(*inputs)


def step_memory(
    model: Denoiser, inputs: Sequence[Tensor], precision: str = "bf16-mixed"
) -> StepMemory:
    """Returns the memory of a training step of a network on the meta device.

    inputs are x (N, C, H, W), t (N,) and the labels (N,) or tokens (N, L_text, C_text) of what one
    GPU has of a batch at a time.
    """
    stored = FLOAT * sum(p.numel() for p in model.parameters())
    trained = FLOAT * sum(p.numel() for p in model.parameters() if p.requires_grad)
    return StepMemory(
        stored, trained, 2 * trained, stored, kept_for_backward(model, inputs, precision)
    )
