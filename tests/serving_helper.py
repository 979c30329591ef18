"""A real server on a real socket inside the test process, and a client without any comfort."""

import http.client
import json
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the server's packages are not installed")

from commands import serve
from serving.app import Limits, Server
from serving.guard import Doors, Guard
from serving.metrics import Metrics
from serving.server import Process, listening

SMALL = Path(__file__).resolve().parent.parent / "checkpoints" / "glm-small"


class Running:
    """A server that answers. process, server: the objects inside."""

    def __init__(self, process, port, thread):
        self.process, self.server, self.port, self.thread = process, process.server, port, thread
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, method, path, body=None, **headers):
        """(status, headers, parsed JSON or text). A dictionary is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            data = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
            headers = {"Content-Type": "application/json"} | {name.replace("_", "-"): value
                                                               for name, value in headers.items()}
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            text = response.read().decode("utf-8")
            is_json = response.headers.get("content-type", "").startswith("application/json")
            return response.status, response.headers, json.loads(text) if is_json else text
        finally:
            connection.close()

    def post(self, path, **body):
        status, _, answer = self.ask("POST", path, body)
        assert status == 200, answer
        return answer

    def error(self, path, body, **headers):
        """(status, the error's object)."""
        status, _, answer = self.ask("POST", path, body, **headers)
        assert status >= 400, answer
        return status, answer["error"]

    def stream(self, path, **body):
        """The events of a stream, which must end with [DONE]."""
        status, headers, text = self.ask("POST", path, {**body, "stream": True})
        assert status == 200, text
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        return [json.loads(event) for event in events[:-1]]

    def metric(self, name, **labels):
        wanted = "".join(f'{key}="{value}"' for key, value in labels.items())
        return next((float(line.rpartition(" ")[2]) for line in self.ask("GET", "/metrics")[2].splitlines()
                     if line.startswith(name + "{") and all(f'{key}="{value}"' in line
                                                            for key, value in labels.items())), wanted)


@contextmanager
def running(*argv, doors=None, start=serve.start, limits=None):
    """A server of the embedded model, on a free port. argv: its flags."""
    arguments = serve.parser().parse_args(["--load", str(SMALL), "--fp32", "--device", "cpu", *argv])
    options = serve.chosen(serve.ServingOptions, arguments)
    name = options.served_model_name or "glm-small"
    server = Server(Metrics(name), limits or Limits(options.max_body, options.read_timeout, options.request_timeout))
    listener = listening("127.0.0.1", 0)
    said = threading.Event()
    process = Process(server, Guard(server, doors or Doors()), listener,
                      lambda deliver: start(arguments, options, name, server, deliver), lambda _: said.set(),
                      options.drain_timeout)
    thread = threading.Thread(target=process.run, daemon=True)
    thread.start()
    assert said.wait(600)
    found = Running(process, listener.getsockname()[1], thread)
    try:
        yield found
    finally:
        process.loop.call_soon_threadsafe(process.end)
        thread.join(600)


def until(holds, seconds=600):
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
