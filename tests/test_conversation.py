"""Conversations: what a chat model is given for a list of messages, and what is shown of its answer."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation import SamplingParams
from generation.conversation import FORMATS, Conversation, question, read_messages
from runtime.errors import UserError

KIT = Path(__file__).resolve().parent.parent.parent / "shared" / "golden_family"
FIRST, SECOND = FORMATS["chatglm"], FORMATS["chatglm2"]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_rounds():
    assert FIRST.prompt([], "q") == "q"
    assert FIRST.prompt([("a", "b")], "q") == "[Round 0]\n问：a\n答：b\n[Round 1]\n问：q\n答："
    assert SECOND.prompt([], "q") == "[Round 1]\n\n问：q\n\n答："
    assert SECOND.prompt([("a", "b")], "q") == "[Round 1]\n\n问：a\n\n答：b\n\n[Round 2]\n\n问：q\n\n答："


def test_a_system_text_stands_in_front_of_the_first_round():
    assert FIRST.prompt([], "q", "Be brief.") == "Be brief.\nq"
    assert SECOND.prompt([("a", "b")], "q", "Be brief.").startswith("Be brief.\n\n[Round 1]\n\n问：a")


def test_braces_and_rounds_that_a_user_types_are_text():
    assert FIRST.prompt([("{number}", "{answer}")], "{query}[Round 7]") == (
        "[Round 0]\n问：{number}\n答：{answer}\n[Round 1]\n问：{query}[Round 7]\n答：")


@pytest.mark.skipif(not KIT.is_dir(), reason="the golden kit of the family is not beside this repository")
@pytest.mark.parametrize("family, chat_format", [("chatglm", FIRST), ("chatglm2", SECOND)])
def test_prompts_and_replies_are_the_original_s(family, chat_format):
    for line in (KIT / family / "chat.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        assert chat_format.prompt(case["history"], case["query"]) == case["prompt"]
    for line in (KIT / "chatglm" / "process_response.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        assert FIRST.reply(case["text"]) == case["response"]


@pytest.mark.parametrize("text, shown", [
    ("  你好, 世界! ", "你好， 世界！"), ("中,文", "中，文"), ("a,b", "a,b"), ("中!b", "中！b"), ("a?中", "a？中"),
    ("中,,文", "中，，文"), ("[[训练时间]]出生", "2023年出生"),
])
def test_replies(text, shown):
    assert FIRST.reply(text) == shown
    assert SECOND.reply(text) == text.strip().replace("[[训练时间]]", "2023年")


@given(st.text("中文a,!?[训练时间] \n\ufffd", max_size=30), st.integers(0, 30))
def test_what_has_been_shown_stays(text, length):
    for chat_format in (FIRST, SECOND):
        assert chat_format.reply(text).startswith(chat_format.settled(text[:length]))


def test_messages():
    assert read_messages([user("q")]) == Conversation((), "q")
    assert read_messages([{"role": "system", "content": "s"}, user("a"), assistant("b"), user("q")]) == Conversation(
        (("a", "b"),), "q", "s")


@pytest.mark.parametrize("messages, what", [
    ([], "must be a list"), ("hello", "must be a list"), (user("q"), "must be a list"),
    ([{"role": "user"}], "message 0: must have a `role`"), (["q"], "message 0: must have a `role`"),
    ([{"role": "tool", "content": "q"}], "message 0: role 'tool' is none of system, user, assistant"),
    ([user("a"), user("b")], "message 1: role 'user' where 'assistant' is due"),
    ([user("a"), {"role": "system", "content": "s"}], "message 1: role 'system' where 'assistant' is due"),
    ([user("a"), assistant("b")], "message 1: the last message must be the user's"),
    ([{"role": "system", "content": "s"}], "message 0: the last message must be the user's"),
])
def test_messages_that_are_none(messages, what):
    with pytest.raises(UserError) as error:
        read_messages(messages)
    assert what in str(error.value)


def ids_of(text):
    return list(text.encode())


def test_whole_oldest_rounds_are_left_out_until_the_answer_has_room():
    talk = Conversation((("a" * 40, "b"), ("c", "d")), "e")
    long = SECOND.prompt(talk.history, talk.query)
    everything = question(talk, SECOND, ids_of, 2 * len(ids_of(long)), SamplingParams())
    assert (everything.rounds_left_out, everything.context) == (0, ids_of(long))
    less = question(talk, SECOND, ids_of, len(ids_of(long)), SamplingParams())
    assert (less.rounds_left_out, less.context) == (1, ids_of(SECOND.prompt((("c", "d"),), "e")))
    assert less.limit == len(ids_of(long)) - len(less.context)
    assert question(talk, SECOND, ids_of, 10_000, SamplingParams(out_seq_length=len(ids_of(long)))) == less
    assert question(talk, SECOND, ids_of, 10_000, SamplingParams(max_gen_length=3)).limit == 3


def test_a_question_that_does_not_fit_by_itself():
    with pytest.raises(UserError, match="the message is too long: it has .* the model takes 20 together"):
        question(Conversation((("a", "b"),), "c" * 30), SECOND, ids_of, 20, SamplingParams())
