"""A conversation at the terminal: a session that keeps what was said."""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from pathlib import Path

from generation.chatting import chat
from generation.conversation import read_messages
from generation.session import Session
from runtime import parallel
from runtime.errors import UserError
from runtime.files import replacing
from runtime.reading import read_json
from runtime.show import counted

CHAT_QUERY = "You ('stop' ends, /help) >>> "
CHAT_HELP = """\
What you type is a message, the model answers. Commands:
  /clear, clear          forget the conversation
  /history               what was said
  /system TEXT           a text in front of the first round; without TEXT: none
  /save FILE             write the conversation to a file (JSON)
  /load FILE             go on with the conversation of a file
  /show, /set, /reset    the options: /set top_p 0.9, /set seed 1 ...
  /help                  this text
  stop, /quit, Ctrl-D    end; Ctrl-C ends an answer"""


class ChatSession(Session):
    """messages: of all rounds so far, without the system text, user and assistant in turn."""

    help = CHAT_HELP

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.messages: list[dict[str, str]] = []
        self.system = ""

    def command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name == "/clear":
            self.messages = []
            self.write("a new conversation\n")
        elif name == "/history":
            self.write("".join(f"{message['role']}: {message['content']}\n" for message in self.all_messages())
                       or "nothing was said yet\n")
        elif name == "/system":
            self.system = rest
            self.write(f"system: {rest}\n" if rest else "no system text\n")
        elif name in ("/save", "/load") and not rest:
            raise UserError(f"{name} needs the name of a file, for example: {name} talk.json")
        elif name == "/save":
            self.save(Path(rest))
        elif name == "/load":
            self.load(Path(rest))
        elif name in ("/help", "/show", "/set", "/reset"):
            super().command(line)
        else:
            raise UserError(f"unknown command {name}; /help lists what there is")

    def all_messages(self) -> list[dict[str, str]]:
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.messages]

    def save(self, path: Path) -> None:
        try:
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(self.all_messages(), ensure_ascii=False, indent=2) + "\n",
                                     encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        self.write(f"{counted(len(self.messages), 'message')} in {path}\n")

    def load(self, path: Path) -> None:
        """Raises UserError for a file that holds no conversation."""
        messages = read_json(path)
        try:
            after = [{"role": "user", "content": "?"}]
            said = read_messages([*messages, *after] if isinstance(messages, list) else messages)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        self.system = said.system
        self.messages = [message for query, answer in said.history
                         for message in ({"role": "user", "content": query}, {"role": "assistant", "content": answer})]
        self.write(f"{counted(len(self.messages), 'message')} from {path}\n")

    def answer(self, text: str) -> None:
        if text.strip() == "clear":
            return self.command("/clear")
        if not text.strip():
            raise UserError("the message is empty (/help says what there is)")
        params = self.options.params
        if params.seed is None:
            params = dataclasses.replace(params, seed=secrets.randbits(53))
        asked = [*self.all_messages(), {"role": "user", "content": text}]
        stops = self.options.stop
        parallel.broadcast_object((asked, params, stops))
        said: list[str] = []
        begin = time.monotonic()

        def tell(piece: str) -> None:
            said.append(piece)
            if self.streams:
                self.write(piece)

        try:
            reply = chat(self.model, self.tokenizer, asked, params, stops=stops, on_text=tell)
        except KeyboardInterrupt:
            if said:  # what was said was said
                self.remember(text, "".join(said))
            raise
        seconds = time.monotonic() - begin
        self.write("\n" if self.streams else f"{reply.text}\n")
        self.remember(text, reply.text)
        left_out = counted(reply.rounds_left_out, "round")
        notes = [f"{counted(len(reply.output_ids), 'token')}, {seconds:.2f} s, "
                 f"{len(reply.output_ids) / seconds:.1f} tokens/s",
                 "cut off at the limit" if reply.finish_reason == "length" else "",
                 f"the oldest {left_out} did not fit and were left out" if reply.rounds_left_out else ""]
        self.note(", ".join(filter(None, notes)))
        return None

    def remember(self, query: str, answer: str) -> None:
        self.messages += [{"role": "user", "content": query}, {"role": "assistant", "content": answer}]


def follow_chat(model, tokenizer) -> None:
    """What the other tensor-parallel ranks do meanwhile: the same, silently."""
    while (asked := parallel.broadcast_object(None)) is not None:
        messages, params, stops = asked
        chat(model, tokenizer, messages, params, stops=stops)
