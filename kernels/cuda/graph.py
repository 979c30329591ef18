"""A decoding step recorded as a CUDA graph: the host starts its thousand kernels with one call, and is free meanwhile.

A graph holds addresses and sizes. So what is recorded is a function without arguments: all that changes from step to
step it reads from tensors that stay where they are, where it may also leave what the next step reads; and no number of
the host's may depend on their content.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

Work = Callable[[], Tensor]
EAGER_RUNS = 4  # of a key before it is recorded: recording takes as long as some steps, and few keys last
MOST = 128  # recordings, which take memory of the device: a server's requests bring ever new options, and so new keys


class Graphs:
    """Functions without arguments, by kinds, and keys that tell those of a kind apart; equal ones mean equal shapes and
    addresses.

    A function is called a few times as it is and recorded then. If that fails, one line on standard error says so, and
    all of its kind go on as they are. Where there are too many, those that were not used for longest are forgotten.

    Tensor-parallel ranks call the same functions in the same order. Recording computes nothing, so that one that fails
    in it, for lack of memory, say, has taken part in no sum; then they tell each other, and all record or none.
    """

    def __init__(self, record: Callable[[Work], Work | RuntimeError],
                 exchange: Callable[[str | None], list[str | None]] = lambda value: [value]):
        """record: -> what does as a function does, without doing it yet, or why nothing can (`Recorder`). exchange:
        gives all ranks' values, to all."""
        self.record, self.exchange = record, exchange
        self._failed: set[str] = set()
        # keys keep alive what they hold: tensors, too, that a graph reads
        self._recorded: OrderedDict[Hashable, Work] = OrderedDict()
        self._runs: OrderedDict[Hashable, int] = OrderedDict()  # of those that are not recorded yet

    def has_failed(self, kind: str) -> bool:
        return kind in self._failed

    def run(self, kind: str, key: Hashable, work: Work) -> Tensor:
        """work's result, which lies in memory that the next run may write to. kind: in words."""
        key = kind, key
        if key in self._recorded:
            self._recorded.move_to_end(key)
            return self._recorded[key]()
        if kind in self._failed:
            return work()
        runs = self._runs.pop(key, 0)
        if runs < EAGER_RUNS:
            _put(self._runs, key, runs + 1)
            return work()
        recorded = self.record(work)
        reasons = self.exchange(reason(recorded) if isinstance(recorded, RuntimeError) else None)
        if (why := next(filter(None, reasons), None)) is None:
            _put(self._recorded, key, recorded)
            return recorded()
        self._failed.add(kind)
        if isinstance(recorded, RuntimeError) and reason(recorded) == why:  # said by the ranks that it is true of
            print(f"kernels: {kind} goes on without CUDA graphs, which is slower: {why}", file=sys.stderr)
        return work()


def _put(values: OrderedDict, key: Hashable, value: object) -> None:
    values[key] = value
    if len(values) > MOST:
        values.popitem(last=False)


class Recorder:
    """Records what a function starts on a device. All recordings share memory for what is between: one that is
    replayed overwrites results of the others."""

    def __init__(self, device: torch.device):
        self.device, self.pool = device, None
        self.side = torch.cuda.Stream(device)
        self._is_ready = False  # the library of products has its memory for this stream

    def __call__(self, work: Work) -> Work | RuntimeError:
        """What starts all that `work` would start, which has been called before, so that libraries and kernels are
        loaded. The error is torch's, of CUDA, of memory."""
        try:
            if not self._is_ready:
                self._prepare()
            return self._record(work)
        except RuntimeError as error:
            return error

    def _prepare(self) -> None:
        with torch.cuda.stream(self.side):
            for dtype in (torch.float32, torch.float16):
                square = torch.zeros(16, 16, dtype=dtype, device=self.device)
                torch.mm(square, square)
        torch.cuda.current_stream(self.device).wait_stream(self.side)
        self._is_ready = True

    def _record(self, work: Work) -> Work:
        current = torch.cuda.current_stream(self.device)
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
