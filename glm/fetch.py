"""How streamed layers come into memory: from a file as they are, from a file in another precision, and to a GPU.

Each slot is a buffer of bytes that holds one layer at a time; a fetch knows where in it a layer's tensors lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from glm.layer_file import FileLayout, LayerFile, Placed, views

Layouts = Mapping[int, Mapping[str, Placed]]  # of each streamed layer


class Fetch:
    """What all ways have in common."""

    def __init__(self, layouts: Layouts, buffers: Sequence[torch.Tensor]):
        """buffers: the slots, on the device."""
        self.layouts, self.buffers = layouts, buffers

    def weights(self, layer: int, slot: int) -> dict[str, torch.Tensor]:
        """The tensors that are this layer's while it is in this slot."""
        return views(self.buffers[slot], self.layouts[layer])

    def start(self, layer: int, slot: int) -> Callable[[], None]:
        """Begin to bring a layer; what is returned waits until it is there, or raises UserError, each time again."""
        raise NotImplementedError

    def release(self, slot: int) -> None:
        """What was asked of the device so far is the last use of this slot's layer."""


class FromFile(Fetch):
    """Read into host memory, as they are in the file."""

    def __init__(self, file: LayerFile, in_file: Mapping[int, FileLayout], buffers: Sequence[torch.Tensor]):
        super().__init__({layer: found.tensors for layer, found in in_file.items()}, buffers)
        self._file, self._in_file = file, in_file

    def start(self, layer: int, slot: int) -> Callable[[], None]:
        return self._file.start(self._in_file[layer], self.buffers[slot])


class Converted(Fetch):
    """In another precision in the file than in the run: read into `raw`, and converted from there into the slot."""

    def __init__(self, file: LayerFile, in_file: Mapping[int, FileLayout], raw: torch.Tensor, layouts: Layouts,
                 buffers: Sequence[torch.Tensor]):
        super().__init__(layouts, buffers)
        self._file, self._in_file, self._raw = file, in_file, raw
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="conversion")

    def start(self, layer: int, slot: int) -> Callable[[], None]:
        return self._worker.submit(self._bring, layer, slot).result

    def _bring(self, layer: int, slot: int) -> None:
        self._file.start(self._in_file[layer], self._raw)()
        sources = views(self._raw, self._in_file[layer].tensors)
        for name, tensor in self.weights(layer, slot).items():
            tensor.copy_(sources[name])


class Uploaded(Fetch):
    """Copied to a GPU, on a CUDA stream of their own, from pinned host memory."""

    def __init__(self, layouts: Layouts, buffers: Sequence[torch.Tensor], host: Mapping[int, torch.Tensor],
                 device: torch.device):
        """host: the bytes of each layer, pinned."""
        super().__init__(layouts, buffers)
        self._host, self._device = host, device
        self._copies = torch.cuda.Stream(device)
        self._copies.wait_stream(torch.cuda.current_stream(device))  # which has made the buffers
        self._ready = [torch.cuda.Event() for _ in buffers]
        self._free = [torch.cuda.Event() for _ in buffers]  # nobody waits for one that was never recorded

    def start(self, layer: int, slot: int) -> Callable[[], None]:
        source = self._host[layer]
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(self._free[slot])
            self.buffers[slot][:source.numel()].copy_(source, non_blocking=True)
            self._ready[slot].record(self._copies)
        return lambda: torch.cuda.current_stream(self._device).wait_event(self._ready[slot])

    def release(self, slot: int) -> None:
        self._free[slot].record(torch.cuda.current_stream(self._device))


class ReadAndUploaded(Uploaded):
    """For a GPU where host memory is short, too: each layer is read from the file before it is copied."""

    def __init__(self, near: Fetch, buffers: Sequence[torch.Tensor], device: torch.device):
        """near: brings layers into its only slot, which is pinned."""
        super().__init__(near.layouts, buffers, dict.fromkeys(near.layouts, near.buffers[0]), device)
        self._near = near
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="upload")

    def start(self, layer: int, slot: int) -> Callable[[], None]:
        copied = self._worker.submit(self._bring, layer, slot)
        return lambda: copied.result()()

    def _bring(self, layer: int, slot: int) -> Callable[[], None]:
        self._near.start(layer, 0)()
        wait = super().start(layer, slot)
        self._ready[slot].synchronize()  # the only slot is needed for the next layer
        return wait
