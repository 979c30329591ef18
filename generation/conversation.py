"""Conversations as chat models were trained to see them: messages become one prompt, a generated text becomes a reply.

Formats are data. What a user says is text: a line that looks like a round, a mask or a command does not become one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from generation.params import BeamParams, SamplingParams
from runtime.errors import UserError

ROLES = ("system", "user", "assistant")
ROOM_SHARE = 8  # of all places, the part that history leaves free for the answer
_HAN = "[\u4e00-\u9fff]"


@dataclass(frozen=True)
class ChatFormat:
    """How a chat model was trained to see a conversation, and what is done to its answers."""

    past: str  # a round that is over, with {number}, {query} and {answer}
    open: str  # the round to be answered, with {number} and {query}
    first: int  # number of the first round
    alone: str  # the round to be answered where there is no history
    gap: str  # between a system text and the first round
    sampling: SamplingParams  # what the model was published with
    is_causal: bool  # the prompt stands behind [gMASK] sop and is read from left to right; else in front of them
    replaced: tuple[tuple[str, str], ...] = ()  # texts of an answer, and what stands for them
    punctuation: tuple[tuple[str, str], ...] = ()  # beside a Chinese character, the first becomes the second

    def prompt(self, history: Sequence[tuple[str, str]], query: str, system: str = "") -> str:
        """The text that the model goes on from. history: (query, answer) of the rounds before, oldest first."""
        rounds = [self.past.format(number=number, query=asked, answer=answered)
                  for number, (asked, answered) in enumerate(history, self.first)]
        last = (self.open if history else self.alone).format(number=self.first + len(history), query=query)
        return (system and system + self.gap) + "".join(rounds) + last

    def reply(self, text: str) -> str:
        """What is shown of a generated text."""
        text = text.strip()
        for old, new in self.replaced:
            text = text.replace(old, new)
        for old, new in self.punctuation:
            text = re.sub(f"({_HAN}){re.escape(old)}", lambda match, new=new: match.group(1) + new, text)
            text = re.sub(f"{re.escape(old)}({_HAN})", lambda match, new=new: new + match.group(1), text)
        return text

    def shown(self, text: str, is_all: bool) -> str:
        """What is certain of the reply: all of it, once the text is complete (generation.texts.Text's `shape`)."""
        return self.reply(text) if is_all else self.settled(text)

    def settled(self, text: str) -> str:
        """The part of an unfinished text's reply that no later token changes."""
        changing = "".join(re.escape(old) for old, _ in self.punctuation)
        while True:
            before, text = text, re.sub(rf"[\s\ufffd{changing}]+\Z", "", text)
            for old, _ in self.replaced:
                begun = max((size for size in range(1, len(old)) if text.endswith(old[:size])), default=0)
                text = text[:len(text) - begun]
            if text == before:
                return self.reply(text)


_TRAINED = (("[[训练时间]]", "2023年"),)
FORMATS = {
    "chatglm": ChatFormat(
        "[Round {number}]\n问：{query}\n答：{answer}\n", "[Round {number}]\n问：{query}\n答：",
        0, "{query}", "\n", SamplingParams(0.95, top_p=0.7), False, _TRAINED,
        tuple(zip(",!:;?", "，！：；？", strict=True))),
    "chatglm2": ChatFormat(
        "[Round {number}]\n\n问：{query}\n\n答：{answer}\n\n", "[Round {number}]\n\n问：{query}\n\n答：", 1,
        "[Round {number}]\n\n问：{query}\n\n答：", "\n\n", SamplingParams(0.8, top_p=0.8), True, _TRAINED),
}


@dataclass(frozen=True)
class Conversation:
    """Messages as a chat format sees them."""

    history: tuple[tuple[str, str], ...]
    query: str
    system: str = ""


@dataclass(frozen=True)
class Question:
    """A conversation as ids, with room for an answer."""

    context: list[int]
    limit: int  # tokens of the answer, end token included
    rounds_left_out: int


def read_messages(messages: Sequence[Mapping[str, str]]) -> Conversation:
    """Messages of role and content, as in OpenAI's API: an optional system message, then user and assistant in turn,
    the user last. Raises UserError, naming the message at fault."""
    if isinstance(messages, (str, Mapping)) or not messages:
        raise UserError('messages must be a list such as [{"role": "user", "content": "..."}], and not empty')
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise UserError(f"message {number}: must have a `role` ({', '.join(ROLES)}) and a text as `content`")
        if message.get("role") not in ROLES:
            raise UserError(f"message {number}: role {message.get('role')!r} is none of {', '.join(ROLES)}")
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    turns = messages if system is None else messages[1:]
    for number, message in enumerate(turns, len(messages) - len(turns)):
        wanted = ("user", "assistant")[(number - len(messages) + len(turns)) % 2]
        if message["role"] != wanted:
            raise UserError(f"message {number}: role {message['role']!r} where {wanted!r} is due; after a system "
                            "message user and assistant take turns")
    if len(turns) % 2 == 0:
        raise UserError(f"message {len(messages) - 1}: the last message must be the user's")
    texts = [message["content"] for message in turns]
    return Conversation(tuple(zip(texts[:-1:2], texts[1::2], strict=True)), texts[-1], system or "")


def question(conversation: Conversation, chat_format: ChatFormat, context_of: Callable[[str], list[int]], most: int,
             params: SamplingParams | BeamParams) -> Question:
    """The ids that a model goes on from. Whole oldest rounds are left out until the answer has some room.

    context_of: a prompt's text -> ids with the family's own tokens around it. most: tokens that the model takes.
    Raises UserError where the last question does not fit by itself.
    """
    total = min(params.out_seq_length or most, most)
    room = max(params.min_gen_length, 1, min(total // ROOM_SHARE, params.max_gen_length or total))
    for left_out in range(len(conversation.history) + 1):
        is_last = left_out == len(conversation.history)
        context = context_of(chat_format.prompt(conversation.history[left_out:], conversation.query,
                                                conversation.system))
        if len(context) + (max(params.min_gen_length, 1) if is_last else room) <= total:
            return Question(context, min(total - len(context), params.max_gen_length or total), left_out)
    what = "the model takes" if total == most else "out_seq_length allows"
    raise UserError(f"the message is too long: it has {len(context)} tokens and needs room for an answer, {what} "
                    f"{total} together")
