"""Who is let in: keys, hosts, origins, a full queue, slow senders; a route is protected unless it is named open."""

import socket

import pytest

from serving.app import Limits
from serving.guard import Doors
from serving.routes import OPEN, ROUTE_TABLE
from tests.serving_helper import running, until

KEYS = {"Authorization": "Bearer right"}


@pytest.fixture(scope="module")
def guarded():
    doors = Doors((b"other", b"right"), ("localhost", "127.0.0.1", "glm.example"), ("https://page.example",))
    with running("--max-requests", "3", doors=doors, limits=Limits(4096, 0.3, 600)) as found:
        yield found


@pytest.mark.parametrize("path", [*ROUTE_TABLE, "/nothing"])
def test_every_route_that_is_not_open_needs_the_key(guarded, path):
    for method in ("GET", "POST"):
        status, headers, answer = guarded.ask(method, path.replace("{id:path}", "x"), {} if method == "POST" else None)
        assert (status == 401) == (path not in OPEN)
        if status == 401:
            assert headers["www-authenticate"] == "Bearer" and answer["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("header", ["Bearer wrong", "right", "Basic right", "Bearer ", "Bearer right2", "Bearer rïght"])
def test_wrong_keys(guarded, header):
    assert guarded.ask("GET", "/v1/models", Authorization=header)[0] == 401


def test_any_of_the_keys_opens(guarded):
    for key in ("right", "other"):
        assert guarded.ask("GET", "/v1/models", Authorization=f"Bearer {key}")[0] == 200


@pytest.mark.parametrize("host, is_let_in", [
    ("localhost:8000", True), ("127.0.0.1", True), ("GLM.example:1", True), ("evil.example", False), ("", False),
    ("localhost.evil.example", False), ("[::2]", False),
])
def test_hosts(guarded, host, is_let_in):
    """A page elsewhere whose name was made to lead here (DNS rebinding) calls the server by that name."""
    status, _, answer = guarded.ask("GET", "/health", Host=host)
    assert (status == 200) == is_let_in
    assert is_let_in or (status, answer["error"]["code"]) == (403, "host_not_allowed")


def test_origins(guarded):
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    status, headers, _ = guarded.ask("OPTIONS", "/v1/fill", **asked)
    assert status == 204 and headers["access-control-allow-origin"] == "https://page.example"
    headers = guarded.ask("GET", "/v1/models", **KEYS, Origin="https://page.example")[1]
    assert headers["access-control-allow-origin"] == "https://page.example"
    status, headers, _ = guarded.ask("OPTIONS", "/v1/fill", **{**asked, "Origin": "https://evil.example"})
    assert status == 401 and "access-control-allow-origin" not in headers


def test_a_full_queue(guarded):
    status, headers, answer = guarded.ask("POST", "/v1/completions", {"prompt": ["a", "b"], "n": 2}, **KEYS)
    assert (status, answer["error"]["code"], headers["retry-after"]) == (429, "queue_full", "1")
    assert guarded.ask("POST", "/v1/completions", {"prompt": ["a", "b"], "max_tokens": 1}, **KEYS)[0] == 200


@pytest.mark.parametrize("begin", [b"POST /v1/fill HT", b"POST /v1/fill HTTP/1.1\r\nHost: localhost\r\nAuthorization: "
                                   b"Bearer right\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"])
def test_senders_that_do_not_finish(guarded, begin):
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=600) as connection:
        connection.sendall(begin)
        data = b""
        while b"request_incomplete" not in data:
            part = connection.recv(65536)
            assert part, data
            data += part
    assert data.startswith(b"HTTP/1.1 408")


def test_the_page_and_its_files(guarded):
    for path in ("/", "/static/page.js", "/static/page.css", "/static/words.js"):
        status, headers, text = guarded.ask("GET", path)
        assert status == 200 and text
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
        assert "http://" not in text and "https://" not in text and "innerHTML" not in text
    assert guarded.ask("GET", "/static/../app.py", **KEYS)[0] == 404


class TestGoneClients:
    ENDLESS = b'{"prompt": "a", "max_tokens": 500, "min_tokens": 500, "stream": true}'

    def ask(self, port, path="/v1/completions", body=ENDLESS):
        connection = socket.create_connection(("127.0.0.1", port), timeout=600)
        connection.sendall(b"POST " + path.encode() + b" HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer right\r\n"
                           b"Content-Type: application/json\r\nContent-Length: " + str(len(body)).encode()
                           + b"\r\n\r\n" + body)
        return connection

    @pytest.mark.parametrize("more", [b', "stream": true', b""])
    def test_their_rows_are_free_again(self, guarded, more):
        for _ in range(7):
            before = counted(guarded, "cancelled")
            body = b'{"prompt": "a", "max_tokens": 500, "min_tokens": 500' + more + b"}"
            connection = self.ask(guarded.port, body=body)
            until(lambda: guarded.server.engine.counts()[0] == 1)
            connection.close()
            until(lambda: guarded.server.engine.counts()[0] == 0 and not guarded.server.in_flight)
            until(lambda before=before: counted(guarded, "cancelled") == before + 1)
        assert guarded.server.engine.units == 0

    def test_one_that_reads_nothing_disturbs_nobody(self, guarded):
        slow = self.ask(guarded.port)
        assert guarded.ask("POST", "/v1/completions", {"prompt": "b", "max_tokens": 3}, **KEYS)[0] == 200
        slow.close()
        until(lambda: not guarded.server.in_flight)


def counted(guarded, outcome):
    """Requests for completions that ended so."""
    line = f'glm_requests_total{{model="glm-small",outcome="{outcome}",route="completions"}} '
    return float(guarded.server.metrics.text((0, 0, 0, 0)).decode().partition(line)[2].partition("\n")[0])
