"""Run a function on several real gloo ranks, in fractions of a second per test.

The ranks are forked from a server process that has imported torch, SAT and the model once. The server is not the test
process: that one may have a process group and threads of its own, which a fork must not inherit.
"""

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def run_ranks(function, world, folder, *arguments, deadline=600.0):
    """function(*arguments) on `world` ranks at once -> the list of their results, in the order of the ranks.

    function: a module-level function; it runs with torch.distributed started (gloo, one thread) and may
    call runtime.parallel.start. folder: an empty one for the rendezvous. Raises AssertionError with the traceback of
    the first rank that fails, or when the deadline (seconds) has passed; no process outlives the call. A rank that
    has answered stays until all have: leaving, it would cut connections that another one is still making.
    """
    context = _server()
    pipes, processes = [], []
    for rank in range(world):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=_rank, args=(theirs, function, rank, world, str(folder), arguments)))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    try:
        return _collect(pipes, time.monotonic() + deadline)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def start(function, *arguments):
    """A process that runs a module-level function and has torch already; the caller kills and joins it."""
    process = _server().Process(target=function, args=arguments)
    process.start()
    return process


def _collect(pipes, end):
    results = {}
    while len(results) < len(pipes):
        ready = wait([pipe for rank, pipe in enumerate(pipes) if rank not in results], max(0.0, end - time.monotonic()))
        assert ready, f"ranks {sorted(set(range(len(pipes))) - set(results))} did not answer in time"
        for pipe in ready:
            rank = pipes.index(pipe)
            try:
                good, value = pickle.loads(pipe.recv_bytes())
            except EOFError:
                raise AssertionError(f"rank {rank} died") from None
            assert good, f"rank {rank} failed:\n{value}"
            results[rank] = value
    return [results[rank] for rank in range(len(pipes))]


def _server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(REPOSITORY) + (f":{before}" if before else "")  # for the server's own imports
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


def _rank(connection, function, rank, world, folder, arguments):
    import torch

    torch.set_num_threads(1)
    try:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank,
                                             world_size=world, timeout=timedelta(seconds=300))
        answer = (True, function(*arguments))
    except BaseException:
        answer = (False, traceback.format_exc())
    connection.send_bytes(pickle.dumps(answer))
    with contextlib.suppress(EOFError, OSError):
        connection.recv_bytes()  # nothing comes; it ends with the test, which kills this process
