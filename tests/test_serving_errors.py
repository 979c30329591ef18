"""What is refused, and how: one form for all errors, nothing ever repeated at length, the next request is answered."""

import contextlib
import json
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving_helper import running

GENERATING = ("/v1/completions", "/v1/fill", "/v1/chat/completions")


@pytest.fixture(scope="module")
def server():
    with running("--max-body", "4096", "--read-timeout", "600") as found:
        yield found


def is_error(answer):
    error = answer["error"]
    return set(error) == {"message", "type", "param", "code"} and 0 < len(error["message"]) <= 2000


@pytest.mark.parametrize("body, param, what", [
    ({}, "prompt", "prompt must be a text, a list"),
    ({"prompt": []}, "prompt", "not empty"),
    ({"prompt": ["a", [1]]}, "prompt", "lists are not mixed"),
    ({"prompt": [[1], "a"]}, "prompt", "lists are not mixed"),
    ({"prompt": [[]]}, "prompt", "not empty"),
    ({"prompt": [True]}, "prompt", "must be"),
    ({"prompt": [1.5]}, "prompt", "must be"),
    ({"prompt": [99999999]}, "prompt", "99999999 is no token id of this model"),
    ({"prompt": [-1]}, "prompt", "-1 is no token id"),
    ({"prompt": ["a"] * 129}, "prompt", "1 to 128 texts"),
    ({"prompt": "a", "max_tokens": "5"}, "max_tokens", 'must be a whole number from 0 to 1073741824, not "5"'),
    ({"prompt": "a", "max_tokens": True}, "max_tokens", "not true"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens", "together with echo"),
    ({"prompt": "a", "min_tokens": 9, "max_tokens": 3}, "min_tokens", "more than max_tokens (3)"),
    ({"prompt": "a", "temperature": 2.1}, "temperature", "from 0 to 2, not 2.1"),
    ({"prompt": "a", "top_p": 0}, "top_p", "above 0 and at most 1"),
    ({"prompt": "a", "top_k": -1}, "top_k", "not -1"),
    ({"prompt": "a", "n": 17}, "n", "from 1 to 16"),
    ({"prompt": ["a"] * 100, "n": 2}, "n", "more than 128"),
    ({"prompt": "a", "seed": 2**53 + 1}, "seed", "beyond 2^53"),
    ({"prompt": "a", "stop": ""}, "stop", "none of them empty"),
    ({"prompt": "a", "stop": ["x"] * 33}, "stop", "at most 32"),
    ({"prompt": "a", "logprobs": 21}, "logprobs", "from 0 to 20"),
    ({"prompt": "a", "logprobs": True}, "logprobs", "not true"),
    ({"prompt": "a", "stream_options": {}}, "stream_options", "stream: true"),
    ({"prompt": "a", "suffix": "b [MASK]"}, "suffix", "no mask"),
    ({"prompt": [5], "suffix": "b"}, "suffix", "as text"),
    ({"prompt": "a [MASK] b [MASK]"}, "prompt", "/v1/fill"),
    ({"prompt": "a [MASK]", "mask": "[gMASK]"}, "mask", "is filled before"),
    ({"prompt": "a", "mask": "[XMASK]"}, "mask", "must be one of [MASK], [sMASK], [gMASK]"),
    ({"prompt": "a [MASK]", "echo": True, "logprobs": 1}, "prompt", "must hold no mask"),
    ({"prompt": "a", "unidirectional": True, "mask": "[MASK]"}, "mask", "leave mask out"),
    ({"prompt": "a", "frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
    ({"prompt": "a", "logit_bias": {"5": 1}}, "logit_bias", "not supported"),
    ({"prompt": "a", "best_of": 3}, "best_of", "value of n"),
    ({"prompt": "a", "max_token": 3}, "max_token", "did you mean max_tokens?"),
    ({"prompt": "a", "max_new_tokens": 3}, "max_new_tokens", "did you mean max_tokens?"),
    ({"prompt": "a\0b"}, "prompt", "NUL"),
])
def test_fields(server, body, param, what):
    status, error = server.error("/v1/completions", body)
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert what in error["message"]


@pytest.mark.parametrize("path, body, status, code", [
    ("/v1/completions", {"prompt": "a", "model": "gpt-4"}, 404, "model_not_found"),
    ("/v1/completions", {"prompt": "word " * 600}, 400, "context_length_exceeded"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}, 400, "model_not_chat"),
    ("/v1/chat/completions", {"messages": []}, 400, "invalid_value"),
    ("/v1/chat/completions", {"messages": [{"role": "user"}]}, 400, "invalid_value"),
    ("/v1/fill", {"text": 5}, 400, "invalid_value"),
    ("/v1/fill", {"text": "a", "num_beams": 1}, 400, "invalid_value"),
    ("/tokenize", {"prompt": 5}, 400, "invalid_value"),
    ("/detokenize", {"tokens": [1 << 40]}, 400, "invalid_value"),
    ("/nothing", {}, 404, "not_found"),
    ("/health", {}, 405, "method_not_allowed"),
])
def test_status_and_code(server, path, body, status, code):
    assert (server.error(path, body)[0], server.error(path, body)[1]["code"]) == (status, code)


def test_a_message_names_what_to_use_instead(server):
    error = server.error("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})[1]
    assert "/v1/completions" in error["message"]
    assert server.ask("GET", "/v1/fill")[1]["allow"] == "POST"


@pytest.mark.parametrize("data, code", [
    (b"", "invalid_json"), (b"{", "invalid_json"), (b"[]", "invalid_json"), (b'"a"', "invalid_json"),
    (b"\xff", "invalid_json"), (b'{"prompt": "a", "prompt": "b"}', "invalid_json"),
    (b'{"prompt": NaN}', "invalid_value"), (b'{"prompt": "\\ud800"}', "invalid_value"),
    (b'{"zebra": ' + b"[" * 50 + b"]" * 50 + b"}", "invalid_json"), (b"[" * 4000, "invalid_json"),
    (b'{"prompt": "a", "zebra": 1e999}', "invalid_value"), (b'{"seed": 1' + b"0" * 400 + b"}", "invalid_value"),
])
def test_bodies(server, data, code):
    status, _, answer = server.ask("POST", "/v1/completions", data)
    assert (status, answer["error"]["code"]) == (400, code) and is_error(answer)


def test_a_body_that_is_too_large(server):
    """Refused by its announced length at once, and while it is counted where none is announced."""
    assert server.error("/v1/completions", {"prompt": "a" * 5000})[0] == 413

    def endless():
        for _ in range(100):
            yield b" " * 1000

    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # while the client is still writing
        assert server.ask("POST", "/v1/completions", endless())[0] == 413


@pytest.mark.parametrize("kind, status", [
    ("text/plain", 415), ("", 415), ("application/x-www-form-urlencoded", 415),
    ("application/json; charset=latin-1", 415), ("application/json; charset=utf-8", 400), ("Application/JSON", 400),
])
def test_what_a_web_page_may_send_unasked_is_refused(server, kind, status):
    assert server.ask("POST", "/v1/completions", b"{}", Content_Type=kind)[0] == status


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                    max_leaves=6),
       st.sampled_from(["prompt", "text", "messages", "max_tokens", "stop", "stream", "n", "logprobs", "model"]),
       st.sampled_from(GENERATING))
@settings(max_examples=60, deadline=None)
def test_any_value_gets_an_answer_or_an_error_of_the_client(server, value, name, path):
    body = {"prompt": "a", "text": "a", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1} | {name: value}
    del body[{"/v1/completions": "text", "/v1/fill": "prompt", "/v1/chat/completions": "prompt"}[path]]
    status, _, answer = server.ask("POST", path, json.dumps(body).encode())
    assert 200 <= status < 500
    assert status == 200 or is_error(answer)


@pytest.mark.parametrize("data", [
    b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00",
    b"POST /v1/fill HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/fill HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
])
def test_what_is_no_http(server, data):
    with socket.create_connection(("127.0.0.1", server.port), timeout=600) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    assert server.ask("GET", "/health")[0] == 200


def test_afterwards_it_still_answers(server):
    assert server.post("/v1/completions", prompt="The", max_tokens=1)["choices"]
    assert server.server.in_flight == set() and server.server.engine.units == 0


@pytest.mark.parametrize("is_apart, rounds, told", [(True, 1, []), (False, 3, [None])])
def test_a_rank_that_leaves_a_round_alone_ends_without_waiting_for_the_others(is_apart, rounds, told):
    """They wait for it at a sum, and would not hear what it says. What fails behind a round fails for its requests."""
    from serving.engine import Engine
    from serving.jobs import Job, Room, Unit

    said, heard, begun = [], [], []
    engine = Engine({None: None}, Room(1, 100, 1), 10, heard.append, None, said.append)

    def broken():
        begun.append(engine)
        engine._is_apart = is_apart
        raise MemoryError

    engine._round = broken
    engine._waiting.append(Unit(Job([]), 0, None))
    engine.run()
    assert isinstance(engine.failure, MemoryError) and len(begun) == rounds and said == told
    assert heard[-1] == []  # the server looks whether the engine has ended
