"""Layers whose weights come into memory when they are needed, and go for the next ones.

    for every layer: stream.at_hand(number), then use it;  stream.leave() behind the last

Each place (slot) in memory holds one layer at a time. While a layer is used, the next ones are on their way into the
other slots; behind the last streamed layer comes the first one again, for the next pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import cycle, dropwhile
from typing import NamedTuple

import torch

from glm.fetch import Fetch


class _Coming(NamedTuple):
    layer: int
    slot: int
    wait: Callable[[], None]


class Stream:
    """Binds the parameters of a model's streamed layers while they are at hand; at other times they are on "meta"."""

    def __init__(self, model: torch.nn.Module, order: Sequence[int], fetch: Fetch):
        """order: the streamed layers in the order of their use. They must have parameters on "meta" now."""
        self.order, self._fetch = tuple(order), fetch
        self.bytes = sum(buffer.nbytes for buffer in fetch.buffers)  # of the device
        self._absent = {layer: _bindings(model, fetch.weights(layer, 0)) for layer in order}
        self._present = {
            (layer, slot): [(place, name, torch.nn.Parameter(tensor, requires_grad=False))
                            for (place, name, _), tensor in zip(self._absent[layer],
                                                                fetch.weights(layer, slot).values(), strict=True)]
            for layer in order for slot in range(len(fetch.buffers))}
        self._coming: deque[_Coming] = deque()
        self._next: Iterator[int] = cycle(order)
        self._held: tuple[int, int] | None = None  # layer and slot

    def at_hand(self, layer: int) -> bool:
        """From here on this layer is used, and none before it. Whether it is a streamed one, with new addresses.

        Raises UserError where it cannot be read; the next call begins anew.
        """
        if self._held is not None and self._held[0] == layer:
            return True
        self.leave()
        if layer not in self._absent:
            return False
        if not self._coming or self._coming[0].layer != layer:
            self._begin_at(layer)
        try:
            self._coming[0].wait()
        except BaseException:  # an interrupt, too
            self._drop()
            raise
        slot = self._coming.popleft().slot
        _bind(self._present[layer, slot])
        self._held = layer, slot
        return True

    def leave(self) -> None:
        """The layer at hand is not used any more."""
        if self._held is None:
            return
        (layer, slot), self._held = self._held, None
        _bind(self._absent[layer])
        self._fetch.release(slot)
        self._begin(slot)

    def _begin(self, slot: int) -> None:
        layer = next(self._next)
        self._coming.append(_Coming(layer, slot, self._fetch.start(layer, slot)))

    def _begin_at(self, layer: int) -> None:
        """Another layer than the expected one: at the start, and after a pass that was given up."""
        self._drop()
        self._next = dropwhile(lambda other: other != layer, cycle(self.order))
        for slot in range(len(self._fetch.buffers)):
            self._begin(slot)

    def _drop(self) -> None:
        for coming in self._coming:
            with suppress(Exception):  # whoever needs this layer will hear of it
                coming.wait()  # nothing may be written to a slot that another layer is read into
        self._coming.clear()


def _bindings(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> list[tuple[dict, str, torch.nn.Parameter]]:
    """For each tensor the dictionary of its module's parameters, its name there and what is there now."""
    found = []
    for name in weights:
        path, _, attribute = name.rpartition(".")
        parameters = model.get_submodule(path)._parameters
        found.append((parameters, attribute, parameters[attribute]))
    return found


def _bind(bindings: list[tuple[dict, str, torch.nn.Parameter]]) -> None:
    for parameters, name, parameter in bindings:
        parameters[name] = parameter
