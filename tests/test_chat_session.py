"""A conversation at the terminal: what is kept of it, and its commands."""

import json
from types import SimpleNamespace

import pytest

from generation import chat_session
from generation.chat_session import ChatSession
from generation.chatting import Reply
from generation.params import Options
from glm.prompt_form import PromptForm


@pytest.fixture
def talk(monkeypatch):
    """talk(lines) -> what was written and noted; the model answers each message with its number of messages."""
    heard = []

    def answer(_model, _tokenizer, messages, _params, stops, on_text):
        heard.append(messages)
        if messages[-1]["content"] == "interrupt":
            on_text("half")
            raise KeyboardInterrupt
        for piece in ("answer ", str(len(messages))):
            on_text(piece)
        return Reply(f"answer {len(messages)}", [1], [2, 3], "stop", int(messages[-1]["content"] == "long"))

    monkeypatch.setattr(chat_session, "chat", answer)
    monkeypatch.setattr(chat_session.parallel, "broadcast_object", lambda value: value)
    monkeypatch.setattr(chat_session.parallel, "size", lambda: 1)

    def talked(*lines):
        waiting, written, noted = list(lines), [], []

        def read():
            if not waiting:
                raise EOFError
            return waiting.pop(0)

        model = SimpleNamespace(config=SimpleNamespace(prompt_form=PromptForm(), max_sequence_length=64))
        heard.clear()
        session = ChatSession(model, SimpleNamespace(commands={}), Options(), read, written.append, noted.append, False)
        session.run()
        return SimpleNamespace(session=session, heard=list(heard), written="".join(written), noted=noted)

    return talked


def contents(messages):
    return [message["content"] for message in messages]


def test_it_remembers_what_was_said(talk):
    done = talk("a", "b", "stop")
    assert [contents(messages) for messages in done.heard] == [["a"], ["a", "answer 1", "b"]]
    assert done.written == "answer 1\nanswer 3\n"


@pytest.mark.parametrize("word", ["clear", "/clear"])
def test_it_forgets_when_it_is_told_to(talk, word):
    assert contents(talk("a", word, "b", "stop").heard[-1]) == ["b"]


def test_a_system_text_stands_in_front(talk):
    done = talk("/system be brief", "a", "/system", "b", "stop")
    assert [messages[0]["role"] for messages in done.heard] == ["system", "user"]


def test_an_interrupted_answer_is_kept_as_far_as_it_came(talk):
    done = talk("interrupt", "b", "stop")
    assert contents(done.heard[-1]) == ["interrupt", "half", "b"]
    assert "(stopped)" in done.noted


def test_rounds_that_do_not_fit_are_told(talk):
    assert "the oldest 1 round did not fit and were left out" in talk("long", "stop").noted[0]


def test_conversations_are_saved_and_go_on(talk, tmp_path):
    file = tmp_path / "talk.json"
    first = talk("/system s", "a", f"/save {file}", "/history", "stop")
    assert "system: s\nuser: a\nassistant: answer 2\n" in first.written
    assert contents(json.loads(file.read_text(encoding="utf-8"))) == ["s", "a", "answer 2"]
    assert contents(talk(f"/load {file}", "b", "stop").heard[0]) == ["s", "a", "answer 2", "b"]


@pytest.mark.parametrize("content, what", [
    ("{", "not valid JSON"), ('[{"role": "user", "content": "a"}]', "role 'user' where 'assistant' is due"),
    ('{"a": 1}', "must be a list"), ("[1]", "must have a `role`"),
])
def test_files_that_hold_no_conversation(talk, tmp_path, content, what):
    file = tmp_path / "talk.json"
    file.write_text(content, encoding="utf-8")
    done = talk(f"/load {file}", "stop")
    assert what in done.noted[0] and str(file) in done.noted[0]


@pytest.mark.parametrize("line, what", [
    ("/save", "/save needs the name of a file"), ("/load /nowhere/x", "/nowhere/x"), ("/save /nowhere/x", "/nowhere/x"),
    ("", "the message is empty"), ("/bogus", "unknown command /bogus"),
])
def test_mistakes_are_told_and_it_goes_on(talk, line, what):
    done = talk(line, "a", "stop")
    assert what in done.noted[0] and len(done.heard) == 1


def test_its_help(talk):
    assert "/save FILE" in talk("/help", "stop").written
