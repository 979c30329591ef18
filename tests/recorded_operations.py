"""A stand-in for a recorder of CUDA graphs: torch's operations are written down with the very tensors and numbers that
they were called with, and done again.

As in a graph, numbers of the host are those of the recording, tensors that were there before are read where they lie,
and what would wait for the device ends the recording.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

aten = torch.ops.aten
WAITING = (aten.item, aten._local_scalar_dense, aten.is_nonzero, aten.nonzero, aten.equal, aten.masked_select)


class Recording(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls, self.made, self.constants = [], set(), set()  # ids of what recorded operations gave

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        given = [x for x in tree_flatten((arguments, keywords))[0] if isinstance(x, torch.Tensor)]
        if function.overloadpacket in WAITING and not all(id(x) in self.constants for x in given):
            raise RuntimeError(f"{function} waits for the device, which is not permitted when a stream is capturing")
        result = function(*arguments, **keywords)
        if function.overloadpacket in (aten.lift_fresh, aten.detach, aten.detach_) and all(
                id(x) in self.constants or not (x.dim() or id(x) in self.made) for x in given):
            self.constants.add(id(result))  # a number of the host's
        self.made |= {id(x) for x in tree_flatten(result)[0]}
        self.calls.append((function, arguments, keywords, result))
        return result


class Recorder:
    """In the place of kernels.cuda.graph.Recorder. What is recorded is computed at once: the first one to ask for it
    gets that."""

    def __init__(self):
        self.recordings = self.replays = 0
        self.is_recording = False

    def __call__(self, work):
        self.is_recording = True
        try:
            with Recording() as recording:
                kept = work()
        except RuntimeError as error:
            return error
        finally:
            self.is_recording = False
        self.recordings += 1
        is_computed = [True]

        def replay():
            if is_computed:
                is_computed.clear()
                return kept
            now = {}
            for function, arguments, keywords, result in recording.calls:
                arguments, keywords = tree_map_only(torch.Tensor, lambda x: now.get(id(x), x), (arguments, keywords))
                again = function(*arguments, **keywords)
                for old, new in zip(tree_flatten(result)[0], tree_flatten(again)[0], strict=True):
                    if isinstance(old, torch.Tensor):
                        now[id(old)] = new
            self.replays += 1
            return kept.copy_(now.get(id(kept), kept))

        return replay
