"""A user's model made fit for maps, for a while."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from vision_wrapper._kinds import check_kind
from vision_wrapper._state import preserve_hooks, preserve_random_states, preserve_state


@contextmanager
def borrowed(model: nn.Module, images: Tensor) -> Iterator[tuple[nn.Module, Tensor]]:
    """The model made fit for Grad-CAM, and the images on its device; everything is put back afterwards."""
    check_kind(model, "model")
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        net = plain(model)
        if any(_needs_copy(tensor) for tensor in [*net.parameters(), *net.buffers()]):
            stack.enter_context(preserve_random_states())
            net = copy.deepcopy(net).float()
        else:
            stack.enter_context(preserve_state(model))
        first = next((p for p in net.parameters() if p.is_floating_point()), images.float())
        with torch.autocast(first.device.type, enabled=False), preserve_hooks(net):
            net.eval()
            for parameter in net.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
            yield net, images.detach().to(first.device, first.dtype, copy=True)


def _needs_copy(tensor: Tensor) -> bool:
    # numpy has no bfloat16, gradients underflow in float16, tensors made in inference mode take no part in autograd.
    return tensor.dtype in (torch.bfloat16, torch.float16) or tensor.is_inference()


def plain(model: nn.Module) -> nn.Module:
    """What `torch.compile` wrapped: hooks do not reach into compiled code."""
    return getattr(model, "_orig_mod", model)
