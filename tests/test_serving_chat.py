"""Chats over HTTP with a chat model: the originals' replies, whole and streamed, and what other routes do with it."""

import pytest

from tests.golden_data import family_folder
from tests.golden_family import checkpoint, rows
from tests.serving_helper import running


@pytest.fixture(scope="module", params=["chatglm2"])
def server(request, tmp_path_factory):
    folder = family_folder(request.param, tmp_path_factory.mktemp(request.param))
    weights = checkpoint(request.param, f"hf_{request.param}")
    with running("--load", str(weights), "--tokenizer-path", str(folder)) as found:
        yield found


def test_the_model_has_the_format_of_its_family(server):
    assert server.ask("GET", "/v1/models")[2]["data"][0]["chat_format"] == "chatglm2"


def test_replies_are_the_original_s(server):
    for row in rows("chatglm2", "chat"):
        messages = [{"role": role, "content": text} for round in row["history"]
                    for role, text in zip(("user", "assistant"), round, strict=True)]
        body = {"messages": [*messages, {"role": "user", "content": row["query"]}], "temperature": 0,
                "max_tokens": row["settings"]["max_length"] - len(row["input_ids"]),
                "repetition_penalty": row["settings"].get("repetition_penalty", 1.0)}
        answer = server.post("/v1/chat/completions", **body)
        assert answer["choices"][0]["message"]["content"] == row["response"]
        assert answer["usage"]["prompt_tokens"] == len(row["input_ids"])
        assert answer["usage"]["completion_tokens"] == len(row["output_ids"])
        events = server.stream("/v1/chat/completions", **body)
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == row["response"]


def test_it_writes_on_and_fills_nothing(server):
    assert server.post("/v1/completions", prompt="hello", max_tokens=3, seed=1)["choices"][0]["text"]
    assert server.post("/v1/completions", prompt=[5, 6, 7], max_tokens=3, seed=1)["usage"]["prompt_tokens"] == 3
    status, error = server.error("/v1/fill", {"text": "a [MASK] b"})
    assert status == 400 and "this model fills no [MASK]; it writes on behind a text" in error["message"]


def test_it_is_sampled_as_it_was_published(server):
    defaults = server.server.defaults
    assert (defaults.temperature, defaults.top_p) == (0.8, 0.8)
