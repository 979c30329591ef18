"""python -m serving: an OpenAI-compatible server, with GLM's blanks and a page to try them on.

    python -m serving --port 8000
    python -m serving --load CHECKPOINT --host 0.0.0.0 --api-key-file keys.txt
    python scripts/launch.py 8 serving --load CHECKPOINT --model-parallel-size 8 ...

One line on standard output says that it is ready, and where. Exit codes: 0 after SIGTERM, 130 after Ctrl-C, each when
all that was begun is answered; 1 answers were cut off, or the engine failed; 2 a mistake in the arguments (one line).
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from commands.model import add_model_arguments, announce_loading, check_folder, load_model, require_fit
from generation.conversation import FORMATS
from runtime.arguments import CommandParser, chosen, flags, option, positive
from runtime.errors import UserError
from runtime.program import FORESEEN, ended, is_first_rank
from runtime.reading import read_text

PROGRAM = "python -m serving"
KEY = "GLM_API_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
HOST_NAMES = ("localhost", "127.0.0.1", "[::1]")  # by which a browser on this machine calls it
LONG_TIMEOUT = 365 * 24 * 3600.0  # other ranks wait as long as nobody asks for anything
CACHE_SHARE = 0.5  # of the memory that is free once the model is loaded
_SECONDS = positive("a number of seconds above 0", 7 * 24 * 3600.0)


@dataclass(frozen=True)
class ServingOptions:
    """The flags of the server."""

    host: str = option("127.0.0.1", "address to listen at", metavar="ADDRESS")
    port: int = option(8000, "port to listen at; 0: a free one")
    served_model_name: str | None = option(None, "the model's id", none="the name of the checkpoint's folder",
                                           metavar="NAME")
    api_key_file: Path | None = option(None, f"file of API keys, one a line (also: {KEY} in the environment)",
                                       metavar="FILE")
    chat_format: str | None = option(None, "format of chats", none="what the checkpoint says; none for a base model",
                                     choices=tuple(FORMATS))
    max_requests: int = option(256, "answers in flight, running and waiting; each choice of each prompt counts")
    max_rows: int = option(64, "rows of the running batch: choices and beams")
    kv_cache_memory: float | None = option(
        None, "budget of keys and values", none="half of what is free", metavar="GB",
        read=positive("a number of GB above 0, for example 4 or 0.5"))
    default_max_tokens: int = option(256, "length of an answer where a request says none")
    max_body: int = option(1 << 20, "bytes of a request, at most", metavar="BYTES")
    request_timeout: float = option(600.0, "seconds that an answer may take in all", read=_SECONDS, metavar="S")
    read_timeout: float = option(30.0, "seconds in which a request must have arrived", read=_SECONDS, metavar="S")
    drain_timeout: float = option(30.0, "seconds that answers have after SIGTERM", read=_SECONDS, metavar="S")


def parser() -> CommandParser:
    found = CommandParser(__doc__, prog=PROGRAM)
    add_model_arguments(found)
    group = found.add_argument_group("server")
    flags(group, ServingOptions)
    group.add_argument("--cors-origin", action="append", default=[], metavar="ORIGIN",
                       help="origin of web pages elsewhere that may call, such as https://example.org; repeatable")
    group.add_argument("--allowed-host", action="append", default=[], metavar="NAME",
                       help="further name by which clients reach a server at a loopback address; repeatable")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        options = chosen(ServingOptions, arguments)
        check(options)
        if not is_first_rank():
            return follow(arguments)
        return serve(arguments, options)
    except FORESEEN as error:
        return ended(error)


def check(options: ServingOptions) -> None:
    for name, least in (("max_requests", 1), ("max_rows", 1), ("default_max_tokens", 1), ("max_body", 1)):
        if getattr(options, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least {least}")
    if not 0 <= options.port < 65536:
        raise UserError(f"--port {options.port}: must be a port, 0 to 65535")


def keys_of(options: ServingOptions) -> tuple[bytes, ...]:
    """The API keys that are accepted; none: everybody is let in."""
    lines = [os.environ[KEY]] if os.environ.get(KEY) else []
    if options.api_key_file is not None:
        in_file = [line.strip() for line in read_text(options.api_key_file).splitlines() if line.strip()]
        if not in_file:
            raise UserError(f"--api-key-file {options.api_key_file}: holds no key; write one a line")
        lines += in_file
    return tuple(line.encode() for line in lines)


def serve(arguments: argparse.Namespace, options: ServingOptions) -> int:
    check_folder(arguments)
    keys, is_local = keys_of(options), options.host in LOOPBACK
    from serving.server import listening

    listener = listening(options.host, options.port)
    require_fit(arguments, "this server")
    if not is_local and not keys:
        print(f"warning: anybody who reaches {options.host} can use this server; set {KEY} or --api-key-file",
              file=sys.stderr, flush=True)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    for name in ("asyncio", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)
    announce_loading(arguments)
    from serving.app import Limits, Server
    from serving.guard import Doors, Guard
    from serving.metrics import Metrics
    from serving.server import Process

    name = options.served_model_name or os.path.basename(os.path.realpath(arguments.load))
    server = Server(Metrics(name), Limits(options.max_body, options.read_timeout, options.request_timeout))
    hosts = (*HOST_NAMES, *(host.lower() for host in arguments.allowed_host)) if is_local else None
    guard = Guard(server, Doors(keys, hosts, tuple(arguments.cors_origin)))
    return Process(server, guard, listener, lambda deliver: start(arguments, options, name, server, deliver),
                   lambda line: print(line, flush=True), options.drain_timeout).run()


def start(arguments: argparse.Namespace, options: ServingOptions, name: str, server, deliver) -> None:
    """Loads the model and starts its thread. Raises UserError."""
    model, tokenizer = load_model(arguments, LONG_TIMEOUT, adapter=())
    models = {None: model} | adapted(model, arguments, name)
    from generation.batching import bytes_per_place
    from generation.params import SamplingParams
    from generation.texts import Names
    from runtime import parallel
    from runtime.resources import free_memory, local_ranks
    from serving.engine import Engine
    from serving.jobs import Room
    from serving.prepare import Served
    from serving.requests import Defaults
    from serving.scoring import score

    place_bytes, most = bytes_per_place(model), model.config.max_sequence_length
    free = CACHE_SHARE * free_memory(str(next(model.parameters()).device)) / local_ranks()
    every_row = options.max_rows * most * place_bytes
    cache = options.kv_cache_memory * 1e9 if options.kv_cache_memory else min(free, every_row)
    room = Room(options.max_rows, int(cache / len(models)), place_bytes)
    if not room.holds(1, most):
        raise UserError(f"keys and values of {most} tokens take {most * place_bytes / 1e9:.2f} GB, and there is "
                        f"{cache / 1e9:.2f} GB for them (--kv-cache-memory)")
    vocabulary = min(tokenizer.num_tokens, model.config.vocab_size)
    chats = options.chat_format or (model.config.family if model.config.family in FORMATS else None)
    server.served = Served(name, int(time.time()), fingerprint(model, tokenizer, arguments.load), tokenizer,
                           Names(tokenizer), most, vocabulary, model.config.prompt_form.within(tokenizer.commands),
                           FORMATS.get(chats), chats, model.config.family in FORMATS)
    own = FORMATS[model.config.family].sampling if model.config.family in FORMATS else SamplingParams()
    names = tuple(each for each in models if each is not None)
    server.defaults = Defaults(name, options.default_max_tokens, vocabulary, own.temperature, own.top_p or 1.0, names)
    server.adapted = {each: replace(server.served, name=each, parent=name,
                                    fingerprint=fingerprint(models[each], tokenizer, arguments.load))
                      for each in names}
    tell = parallel.broadcast_object if parallel.size() > 1 else None
    server.engine = Engine(models, room, options.max_requests, deliver, score, tell)
    server.engine.start()


def adapted(model, arguments: argparse.Namespace, base: str) -> dict[str, object]:
    """The model with each --adapter on it, by the name that it was given or else its file has; the weights are there
    once. base: the name of the model without any."""
    from glm.loading import adapt, sharing

    found: dict[str, object] = {}
    for text in arguments.adapter or ():
        name, path = text.split("=", 1) if "=" in text else (Path(text).name.removesuffix(Path(text).suffix), text)
        if not name or name == base or name in found:
            raise UserError(f"--adapter {text}: {name or 'nothing'!r} is no name of its own; say another: NAME=FILE")
        found[name] = sharing(model)
        adapt(found[name], path, arguments.load, arguments.lora_alpha, arguments.lora_layout)
    return found


def fingerprint(model, tokenizer, checkpoint: Path) -> str:
    """Of everything that an answer depends on beside the request."""
    from evaluation.store import hash_code, hash_json
    from generation.file_run import facts_of
    from generation.params import Options

    return f"glm-{hash_json([facts_of(model, tokenizer, Options(), checkpoint), hash_code()])[:12]}"


def follow(arguments: argparse.Namespace) -> int:
    """What the other ranks do: the rounds of the first, which says when it is over, whatever signals come."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    model, _ = load_model(arguments, LONG_TIMEOUT, adapter=())
    models = {None: model} | adapted(model, arguments, "")
    from runtime import parallel
    from serving.engine import follow as follow_rounds
    from serving.scoring import score

    follow_rounds(models, lambda: parallel.broadcast_object(None), score)
    return 0
