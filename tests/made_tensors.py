"""The bytes of tensors that operations make."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Made(TorchDispatchMode):
    """While it is entered, `sizes` gets the bytes of every tensor that an operation makes; views and what is changed in
    place are none. device: the type of the devices that count; None: all."""

    def __init__(self, device: str | None = None):
        super().__init__()
        self.device, self.sizes = device, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        is_new = not function.is_view and not function._schema.is_mutable
        if is_new and isinstance(result, torch.Tensor) and self.device in (None, result.device.type):
            self.sizes.append(result.nbytes)
        return result
