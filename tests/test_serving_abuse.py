"""A server under abuse at full size: clients that vanish at any moment, thousands of requests that are none.

The server is a process of its own, so that its memory, threads and files can be looked at from outside.
"""

import contextlib
import http.client
import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.serving_helper import SMALL, until

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 600  # within which anything happens, or hangs
VANISHING, MALFORMED = 200, 10_000
MEMORY_BYTES = 48 << 20  # by which a server may be larger afterwards than after a first tenth of the same abuse
ROUTES = {
    "/v1/completions": {"prompt": "He put his hand in", "max_tokens": 60, "stream": True, "logprobs": 2},
    "/v1/fill": {"text": "The [MASK] lies at the [MASK].", "max_tokens": 20, "num_beams": 3},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 30, "stream": True},
    "/tokenize": {"prompt": "a b c"}, "/detokenize": {"tokens": [1, 2, 3]},
}
VALUES = (None, True, -1, 0, 3, 1e308, 10**400, "", "a", "\ud800", "\0", [], [[]], {}, ["a", 1], "[MASK]" * 9,
          [1] * 200)
HEADERS = (b"Content-Length: 99999999999\r\n", b"Content-Length: -1\r\n", b"Content-Length: 1, 2\r\n",
           b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Expect: 100-continue\r\n",
           b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"Host: evil\r\n", b": x\r\n",
           b"X: " + b"y" * 20_000 + b"\r\n",
           b"Content-Type: text/plain\r\n", b"Range: bytes=0-\r\n", b"\xff\xfe: \x00\r\n", b"Connection: close\r\n")


class Server:
    def __init__(self, process, port):
        self.process, self.port = process, port

    def connection(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body),
                               {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read().decode()

    def gauge(self, name):
        line = next(line for line in self.ask("GET", "/metrics")[1].splitlines() if line.startswith(f"{name}{{"))
        return float(line.rpartition(" ")[2])

    def is_idle(self):
        return not any(map(self.gauge, ("glm_requests_running", "glm_requests_waiting", "glm_batch_rows",
                                        "glm_kv_cache_used_ratio")))

    def resources(self):
        """(resident bytes, threads, open files)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text().split()
        files = len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))
        return 1024 * int(status[status.index("VmRSS:") + 1]), int(status[status.index("Threads:") + 1]), files


@pytest.fixture(scope="module")
def server():
    command = [sys.executable, "-m", "serving", "--load", str(SMALL), "--fp32", "--device", "cpu", "--port", "0",
               "--default-max-tokens", "4", "--read-timeout", "5", "--chat-format", "chatglm2"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield Server(process, int(process.stdout.readline().rpartition(":")[2]))
        finally:
            process.terminate()
            process.wait(SECONDS)


def request(path, body, more=b""):
    return (b"POST " + path.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + more
            + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)


def vanish(server, seed):
    """Send a request, or a part of it, take some of the answer or wait, and be gone: closed, or reset."""
    chance = random.Random(seed)
    path = chance.choice([*ROUTES][:3])
    data = request(path, json.dumps(ROUTES[path]).encode())
    with server.connection() as connection:
        connection.sendall(data[:chance.randrange(1, len(data))] if chance.random() < 0.3 else data)
        connection.settimeout(chance.uniform(0.01, 2.0))
        with contextlib.suppress(TimeoutError, ConnectionError):
            if chance.random() < 0.6:
                connection.recv(chance.choice([1, 100, 100_000]))
            else:
                time.sleep(chance.uniform(0, 1.0))
        if chance.random() < 0.5:  # the system sends a reset instead of an end
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def malformed(chance):
    """(bytes, whether they are HTTP and whole): values that no field takes; every other time damaged bytes, too."""
    path = chance.choice([*ROUTES])
    body = dict(ROUTES[path], max_tokens=2)
    for _ in range(chance.randrange(3)):
        body[chance.choice([*body, "stop", "n", "seed", "suffix", "temperature", "echo"])] = chance.choice(VALUES)
    body = json.dumps(body).encode()
    if chance.random() < 0.5:
        return request(path, body, b"Connection: close\r\n"), True
    data = bytearray(request(path, body, b"".join(chance.sample(HEADERS, chance.randrange(3)))))
    for _ in range(chance.choice([0, 1, 1, 2, 9])):
        place = chance.randrange(len(data))
        change = chance.randrange(4)
        if change == 0:
            data[place] = chance.randrange(256)
        elif change == 1:
            del data[place:place + chance.randrange(1, 30)]
        elif change == 2:
            data[place:place] = chance.randbytes(chance.randrange(1, 30))
        else:
            data[place:place] = data[place:place + 40]
    return bytes(data[:chance.randrange(1, len(data) + 1)] if chance.random() < 0.2 else data), False


def answer_to(server, data, is_whole):
    """What comes back; the sender of damaged bytes says that no more follow."""
    found = b""
    with server.connection() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(data)
        if not is_whole:
            connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65536):
            found += part
    assert found or not is_whole
    return found


def abuse(server, begin, clients, requests):
    """All clients at once, while requests come from four threads -> statuses of the answers."""
    gone = [threading.Thread(target=vanish, args=(server, begin + number)) for number in range(clients)]
    for thread in gone:
        thread.start()
    chances = [random.Random(begin + number) for number in range(requests)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda chance: answer_to(server, *malformed(chance)), chances))
    for thread in gone:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in gone)
    return [int(answer[9:12]) for answer in answers if answer.startswith(b"HTTP/1.1 ")]


@pytest.mark.slow
def test_clients_that_vanish_and_requests_that_are_none(server):
    """Not one answer says that the server failed; afterwards it answers as before, and holds no more than before."""
    asked = {"prompt": "He put his hand in", "temperature": 0, "max_tokens": 8}
    before = json.loads(server.ask("POST", "/v1/completions", asked)[1])["choices"]
    abuse(server, 0, VANISHING // 10, MALFORMED // 10)  # buffers and pools of threads have their size now
    until(server.is_idle)
    memory, threads, _ = server.resources()
    statuses = abuse(server, 10**6, VANISHING, MALFORMED)
    assert len(statuses) > MALFORMED // 2 and 200 in statuses and 400 in statuses
    assert not [status for status in statuses if status >= 500]
    until(server.is_idle)
    assert server.ask("GET", "/health")[0] == 200 and server.process.poll() is None
    assert json.loads(server.ask("POST", "/v1/completions", asked)[1])["choices"] == before
    until(lambda: server.resources()[2] < 64)  # no connection is left open
    after = server.resources()
    print(f"memory {memory >> 20} -> {after[0] >> 20} MB, threads {threads} -> {after[1]}, {len(statuses)} statuses: "
          f"{ {status: statuses.count(status) for status in sorted(set(statuses))} }")
    assert after[0] - memory < MEMORY_BYTES and after[1] <= threads + 8
