"""The client that people have: OpenAI's own package, against a real server."""

import pytest

from tests.serving_helper import running

openai = pytest.importorskip("openai", reason="the openai package is not installed")
PROMPT = "He put his hand in his pocket and took out"


@pytest.fixture(scope="module")
def server():
    with running("--chat-format", "chatglm2", "--default-max-tokens", "8") as found:
        yield found


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_completions(client):
    answer = client.completions.create(model="glm-small", prompt=[PROMPT, "The"], n=2, seed=1, max_tokens=6, logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert len(answer.choices[0].logprobs.tokens) >= 1
    events = list(client.completions.create(model="glm-small", prompt=PROMPT, seed=1, max_tokens=6, stream=True,
                                            stream_options={"include_usage": True}))
    assert "".join(event.choices[0].text for event in events if event.choices) == answer.choices[0].text
    assert events[-1].usage.completion_tokens >= 1


def test_chats(client):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"}, {"role": "user", "content": [{"type": "text", "text": "q"}]}]
    asked = {"model": "glm-small", "messages": messages, "seed": 2, "max_completion_tokens": 6}
    answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    message = answer.choices[0].message
    assert message.role == "assistant" and answer.choices[0].finish_reason in ("stop", "length")
    assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens
    events = list(client.chat.completions.create(**asked, stream=True))
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(event.choices[0].delta.content or "" for event in events) == message.content
    assert events[-1].choices[0].finish_reason == answer.choices[0].finish_reason


def test_models(client):
    assert [model.id for model in client.models.list()] == ["glm-small"]
    assert client.models.retrieve("glm-small").chat_format == "chatglm2"


def test_errors_are_its_exceptions(client):
    with pytest.raises(openai.BadRequestError, match="temperature must be a number from 0 to 2"):
        client.completions.create(model="glm-small", prompt="a", temperature=5)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="a")
