"""CUDA graphs of functions (kernels/cuda/graph.py): when they are recorded, and what is done where that fails."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

import kernels
from generation import sequences
from kernels.cache import BuildError
from kernels.cuda import Operators, graph
from runtime import parallel
from tests.fake_model import FakeModel
from tests.parallel_helper import run_ranks
from tests.recorded_operations import Recorder

pytestmark = pytest.mark.usefixtures("one_thread")


def nowhere(_):
    raise BuildError("no driver")


def test_a_key_is_recorded_once_it_is_worth_it():
    recorder, runs = Recorder(), []
    graphs, total = graph.Graphs(recorder), torch.zeros(2)
    given = torch.ones(2)

    def work():
        runs.append(1)
        return total + given

    for n in range(graph.EAGER_RUNS + 3):
        given.fill_(n)
        assert graphs.run("kind", "key", work).tolist() == [n, n]
    assert recorder.recordings == 1 and recorder.replays == 2 and len(runs) == graph.EAGER_RUNS + 1
    graphs.run("kind", "other", work)
    assert recorder.recordings == 1


def test_recordings_are_forgotten_where_there_are_ever_new_keys(monkeypatch):
    """Those that were not used for longest; one that is used stays. What was called a few times is forgotten, too."""
    monkeypatch.setattr(graph, "MOST", 2)
    recorder = Recorder()
    graphs = graph.Graphs(recorder)

    def run(key, times=graph.EAGER_RUNS + 1):
        before = recorder.recordings
        for _ in range(times):
            graphs.run("kind", key, lambda: torch.ones(1))
        return recorder.recordings - before

    assert [run(key) for key in (1, 2, 1, 3)] == [1, 1, 0, 1]  # the third run is of what is recorded
    assert [run(key) for key in (1, 2)] == [0, 1]
    for key in range(10, 20):
        run(key, graph.EAGER_RUNS)
    assert [run(10, 1), run(19, 1)] == [0, 1]


def test_a_recording_that_breaks_off_leaves_the_stream_as_it_was(monkeypatch, capsys):
    """torch ends the recording with an error of its own, and leaves the stream that was recorded."""
    class Graph:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            streams.append("side")

        def __exit__(self, *_):
            raise RuntimeError("operation failed due to a previous error during capture")

    streams = ["torch's"]
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: SimpleNamespace(wait_stream=lambda other: None))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(wait_stream=lambda other: None))
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "set_stream", lambda _: streams.append("torch's"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", SimpleNamespace)
    monkeypatch.setattr(torch.cuda, "graph", Graph)
    monkeypatch.setattr(graph.Recorder, "_prepare", lambda self: None)
    graphs, calls = graph.Graphs(graph.Recorder(torch.device("cuda"))), []

    def work():
        calls.append(1)
        if streams[-1] == "side":
            raise RuntimeError("this waits for the device\nand more")
        return len(calls)

    results = [graphs.run("decoding", "key", work) for _ in range(graph.EAGER_RUNS + 2)]
    assert results[-2:] == [6, 7] and streams[-1] == "torch's"
    assert graphs.has_failed("decoding") and not graphs.has_failed("another")
    assert capsys.readouterr().err.splitlines() == [
        "kernels: decoding goes on without CUDA graphs, which is slower: this waits for the device"]


def test_ranks_record_what_all_of_them_can(capsys):
    """One is out of memory: it says so, none records that kind, and each does the work once."""
    def rank(number, fails, others):
        def record(work):
            return RuntimeError("CUDA out of memory") if fails else lambda: told.append(f"{number} replays") or 1

        told = []
        graphs = graph.Graphs(record, lambda value: [value, *others])
        for _ in range(graph.EAGER_RUNS + 2):
            graphs.run("decoding", "key", lambda: told.append("work") or 0)
        return told, graphs.has_failed("decoding"), capsys.readouterr().err

    runs = ["work"] * graph.EAGER_RUNS
    line = "kernels: decoding goes on without CUDA graphs, which is slower: CUDA out of memory\n"
    assert rank(0, False, [None]) == ([*runs, "0 replays", "0 replays"], False, "")
    assert rank(1, True, [None]) == ([*runs, "work", "work"], True, line)
    assert rank(2, False, ["CUDA out of memory"]) == ([*runs, "work", "work"], True, "")


def _sums_of_two_ranks():
    """Rank 1 lacks the memory for its first recording; sums that were not met would wait for ever."""
    parallel.start(2)
    graphs, made = graph.Graphs(None, parallel.exchange), []

    def work():
        return parallel.reduce(torch.ones(1))

    def record(work):
        made.append(1)
        return RuntimeError("CUDA out of memory") if parallel.rank() and len(made) == 1 else work

    graphs.record = record
    with torch.no_grad():
        sums = [graphs.run(kind, "key", work).item() for kind in "ab" for _ in range(graph.EAGER_RUNS + 3)]
    return sums, graphs.has_failed("a"), graphs.has_failed("b")


def test_sums_of_ranks_stay_together_where_one_cannot_record(tmp_path):
    times = 2 * (graph.EAGER_RUNS + 3)
    assert run_ranks(_sums_of_two_ranks, 2, tmp_path) == 2 * [([2.0] * times, True, False)]


def test_where_steps_are_recorded(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setitem(kernels.BACKENDS, "cuda", lambda: Operators(nowhere))
    monkeypatch.setattr(graph, "Recorder", lambda device: device)
    assert kernels.graphs(torch.device("cpu")) is None
    assert (kernels.graphs(gpu).record, kernels.graphs(gpu).exchange) == (gpu, parallel.exchange)
    monkeypatch.setenv(kernels.CUDA_GRAPH, "no")
    assert kernels.graphs(gpu) is None
    monkeypatch.delenv(kernels.CUDA_GRAPH)
    monkeypatch.setitem(kernels.BACKENDS, "cuda", lambda: None)
    assert kernels.graphs(gpu) is None
    monkeypatch.setattr(kernels, "graphs", lambda device: pytest.fail("layers that come and go are not recorded"))
    model = FakeModel()
    model.stream = SimpleNamespace()
    sequences.Sequences(model, 1, 4)


def test_an_error_that_explains_another_is_the_reason_for_a_step_that_is_not_recorded():
    with pytest.raises(RuntimeError) as caught:
        try:
            raise KeyError("weight")
        except KeyError as error:
            raise RuntimeError("there is no weight\nand more") from error
    assert graph.reason(caught.value) == "there is no weight"
