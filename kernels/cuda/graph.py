"""A decoding step recorded as a CUDA graph: the host starts its thousand kernels with one call, and is free meanwhile.

A graph holds addresses and sizes. So what is recorded is a function without arguments: all that changes from step to
step it reads from tensors that stay where they are, and no number of the host's may depend on their content.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

Work = Callable[[], Tensor]
EAGER_RUNS = 4  # of a key before it is recorded: recording takes as long as some steps, and few keys last


class Graphs:
    """Functions without arguments, by keys that tell them apart; equal keys mean equal shapes and addresses.

    A function is called a few times as it is and recorded then. If that fails, one line on standard error says so, and
    all go on as they are.
    """

    def __init__(self, record: Callable[[Work], Work]):
        """record: runs a function, as often as it needs to, and gives one that repeats what it did (`Recorder`)."""
        self.record, self.failure = record, None
        self._recorded: dict[Hashable, Work] = {}
        self._runs: Counter[Hashable] = Counter()

    def run(self, key: Hashable, work: Work) -> Tensor:
        """work's result, which lies in memory that the next run may write to. work may be called several times, and
        must then do the same again."""
        if key not in self._recorded:
            self._runs[key] += 1
            if self.failure is not None or self._runs[key] <= EAGER_RUNS:
                return work()
            try:
                self._recorded[key] = self.record(work)
            except RuntimeError as error:  # torch's, of CUDA, of memory
                self.failure = reason(error)
                print(f"kernels: decoding goes on without CUDA graphs, which is slower: {self.failure}",
                      file=sys.stderr)
                return work()
        return self._recorded[key]()


class Recorder:
    """Records what a function starts on a device. All recordings share memory for what is between: one that is
    replayed overwrites results of the others."""

    def __init__(self, device: torch.device):
        self.device, self.pool = device, None
        self.side = torch.cuda.Stream(device)

    def __call__(self, work: Work) -> Work:
        """Runs `work` once on a stream of its own, so that libraries and kernels are loaded by then, and records it."""
        current = torch.cuda.current_stream(self.device)
        self.side.wait_stream(current)
        with torch.cuda.stream(self.side):
            work()
        current.wait_stream(self.side)
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads (a server's, NCCL's) may go on calling CUDA
            with torch.cuda.graph(graph, pool=self.pool, stream=self.side, capture_error_mode="thread_local"):
                result = work()
        except BaseException:
            torch.cuda.set_stream(current)  # where ending the recording fails, too, torch leaves the other one
            raise
        self.pool = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


def reason(error: BaseException) -> str:
    """One line: of errors that came up while another one was handled the first one's, since a recording that was broken
    off ends with an error of its own; but one that was raised to explain another (`from`) stands for it."""
    while error.__context__ is not None and not error.__suppress_context__:
        error = error.__context__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
