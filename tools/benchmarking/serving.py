"""The server under so many clients, beside the same texts one after the other, and beside all of them in one batch."""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from runtime.errors import UserError
from runtime.show import counted

PROMPT = "The old house at the river"
TOKENS = 64  # of every answer


class Result(NamedTuple):
    """One way of answering."""

    way: str
    tokens_per_second: float
    first: tuple[float, float] | None  # seconds to the first token: median and 95 of 100
    token: tuple[float, float] | None  # seconds from one token to the next


def measure(load: Path, precision: str, clients: Sequence[int], requests: int) -> list[Result]:
    """requests: of every client, one after the other; and as many texts, alone and together, as 16 clients have."""
    return [*_without_a_server(load, precision, requests), *_with_a_server(load, precision, clients, requests)]


def table(found: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows. How many times as fast as one text after the other stands beside each."""
    alone = found[0].tokens_per_second

    def seconds(pair: tuple[float, float] | None) -> list[str]:
        return ["", ""] if pair is None else [f"{1000 * value:.1f} ms" for value in pair]

    heads = ["way", "tokens/s", "times", "first token", "95%", "a token", "95%"]
    return heads, [[one.way, f"{one.tokens_per_second:.0f}", f"{one.tokens_per_second / alone:.2f}",
                    *seconds(one.first), *seconds(one.token)] for one in found]


def _without_a_server(load: Path, precision: str, requests: int) -> list[Result]:
    import glm
    from generation import SamplingParams, fill_blanks
    from glm.loading import DTYPES

    model, tokenizer = glm.load(load, dtype=DTYPES[precision])
    params = SamplingParams(seed=1, min_gen_length=TOKENS, max_gen_length=TOKENS)
    texts, found = [f"{PROMPT} {number}" for number in range(16)], []
    fill_blanks(model, tokenizer, texts[:1], params)
    for way, size in (("one after the other", 1), ("one batch of 16", 16)):
        begin = time.perf_counter()
        for _ in range(requests):
            fill_blanks(model, tokenizer, texts, params, batch_size=size)
        found.append(Result(way, len(texts) * requests * TOKENS / (time.perf_counter() - begin), None, None))
    return found


def _with_a_server(load: Path, precision: str, clients: Sequence[int], requests: int) -> list[Result]:
    program = [sys.executable, "-m", "serving", "--load", str(load), f"--{precision}", "--device", "cpu", "--port", "0"]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ)
    try:
        line = process.stdout.readline()
        if not line:
            raise UserError(f"the server did not start: {' '.join(program)}")
        port = int(line.rpartition(":")[2])
        _ask(port, 0, [], threading.Lock())
        return [_clients(port, count, requests) for count in clients]
    finally:
        process.terminate()
        process.wait()


def _clients(port: int, count: int, requests: int) -> Result:
    times, lock = [], threading.Lock()

    def run(client: int) -> None:
        for request in range(requests):
            _ask(port, client * requests + request, times, lock)

    threads = [threading.Thread(target=run, args=(client,)) for client in range(count)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    firsts = [moments[1] - moments[0] for moments in times]
    gaps = [(moments[-1] - moments[1]) / (TOKENS - 1) for moments in times]
    return Result(counted(count, "client"), count * requests * TOKENS / seconds, _spread(firsts), _spread(gaps))


def _spread(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]


def _ask(port: int, number: int, times: list[list[float]], lock: threading.Lock) -> None:
    """One streamed answer; its moments: asked, first token, last."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    body = {"prompt": f"{PROMPT} {number}", "max_tokens": TOKENS, "min_tokens": TOKENS, "stream": True, "seed": 1}
    moments = [time.perf_counter()]
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise UserError(f"the server answered {response.status}: {response.read(500)!r}")
    while line := response.readline():
        if line.startswith(b"data: {"):
            moments = [*moments[:2], time.perf_counter()] if len(moments) > 1 else [*moments, time.perf_counter()]
    connection.close()
    with lock:
        times.append(moments)
