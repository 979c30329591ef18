"""The routes: a request is read, checked, given to the engine, and answered whole or as a stream of events."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serving import prepare, requests
from serving.answers import Chats, Choice, Completions, Fills
from serving.choices import Entry, News
from serving.engine import Engine
from serving.errors import ApiError, bad, draining, timed_out, unknown_model
from serving.fields import Fields, check_content_type, parse_body
from serving.jobs import Job
from serving.metrics import Metrics
from serving.page import page_file
from serving.prepare import Served
from serving.streams import Stream

log = logging.getLogger("serving")
WAITING_SECONDS = 10.0  # between comments on a stream that has nothing to say
GONE, LATE, QUIET, CUT = object(), object(), object(), object()  # in a mailbox, beside news


@dataclass
class Server:
    """What all requests share. status: "loading", "ok", "draining" or "failed"."""

    metrics: Metrics
    limits: Limits
    status: str = "loading"
    served: Served | None = None
    adapted: dict[str, Served] = field(default_factory=dict)  # with an adapter on it, by its name
    defaults: requests.Defaults | None = None
    engine: Engine | None = None
    in_flight: set[Job] = field(default_factory=set)

    def deliver(self, news: list[tuple[Job, int, object]]) -> None:
        """In the event loop: what the engine handed over."""
        if self.engine is not None and self.engine.failure is not None:
            self.status = "failed"
        for job, number, said in news:
            job.mailbox.put_nowait((number, said))


@dataclass(frozen=True)
class Limits:
    body: int  # bytes
    read_seconds: float  # headers and body of a request
    request_seconds: float  # an answer in all


@dataclass
class Outcome:
    """What the log says of a request."""

    tokens_in: int = 0
    tokens_out: int = 0
    outcome: str = ""  # of a route that generates


def health(server: Server, _request: Request) -> Response:
    return JSONResponse({"status": server.status}, 200 if server.status == "ok" else 503)


def live(server: Server, _request: Request) -> Response:
    return JSONResponse({"status": server.status}, 503 if server.status == "failed" else 200)


def metrics(server: Server, _request: Request) -> Response:
    counts = server.engine.counts() if server.engine is not None else (0, 0, 0, 0.0)
    return Response(server.metrics.text(counts), headers={"Content-Type": CONTENT_TYPE_LATEST})


def models(server: Server, _request: Request) -> Response:
    served = _ready(server)
    return JSONResponse({"object": "list", "data": [_model(each) for each in (served, *server.adapted.values())]})


def model(server: Server, request: Request) -> Response:
    served, name = _ready(server), request.path_params["id"]
    if name != served.name and name not in server.adapted:
        raise unknown_model(name, (served.name, *server.adapted))
    return JSONResponse(_model(server.adapted.get(name, served)))


def _model(served: Served) -> dict:
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "local",
            "max_model_len": served.most, "chat_format": served.chat_name,
            **({"parent": served.parent} if served.parent else {})}


def tokenizer_info(server: Server, _request: Request) -> Response:
    _ready(server)
    return JSONResponse({"bos_token": "<sop>", "eos_token": "</s>", "pad_token": None, "chat_template": None})


async def tokenize(server: Server, request: Request) -> Response:
    served = _ready(server)
    fields = Fields(await _body(server, request))
    text = fields.text("prompt")
    fields.switch("add_special_tokens")
    fields.text("model")
    if text is None:
        raise bad("prompt", "prompt must be a text")
    special = {"<sop>": "sop", "</s>": "eos"}.get(text)
    ids = served.tokenizer.encode(text) if special is None else [served.tokenizer.command(special)]
    return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": served.most})


async def detokenize(server: Server, request: Request) -> Response:
    served = _ready(server)
    tokens = Fields(await _body(server, request)).get("tokens")
    known = range(served.vocabulary)
    if not isinstance(tokens, list) or not all(type(token) is int and token in known for token in tokens):
        raise bad("tokens", f"tokens must be a list of ids, 0 to {served.vocabulary - 1}")
    return JSONResponse({"prompt": served.names.first(tokens)})


def page(_server: Server, request: Request) -> Response:
    return page_file(request.url.path)


async def generate(server: Server, request: Request, send: Callable, outcome: Outcome) -> Response | None:
    """The routes that the model answers. None: the answer has been sent, as a stream."""
    outcome.outcome = "rejected"
    served = _ready(server)
    values = await _body(server, request)
    asked, ignored, job, answer = _prepared(request.url.path, values, server)
    headers = {"x-glm-ignored": ", ".join(name.encode("ascii", "replace").decode()[:60] for name in ignored[:20])}
    headers = headers if ignored else {}
    _admit(server, job)
    outcome.outcome, outcome.tokens_in = "error", answer.prompt_tokens
    watching = asyncio.ensure_future(_watch(request, job))
    late = asyncio.get_running_loop().call_later(server.limits.request_seconds, job.mailbox.put_nowait, LATE)
    first = None
    try:
        choices = [Choice() for _ in job.choices]
        stream = Stream(send, headers) if asked.streaming.is_on else None
        if stream is not None:
            await stream.begin()
        left, is_first = job.size, [True] * len(choices)
        while left:
            number, said = await _next(job, stream)
            first = first or (time.monotonic() if number >= 0 else None)
            left -= number < 0 or said.is_last
            if number < 0:
                answer.scored[-1 - number] = _entries(answer, -1 - number, said, served)
                continue
            outcome.tokens_out += said.tokens
            if said.error is not None:
                raise ApiError(500, said.error, "generation_failed")
            choices[number].take(said)
            if stream is not None:
                await stream.events(answer.chunk(number, said, is_first[number]))
                is_first[number] = False
        outcome.outcome = "ok"
        if stream is None:
            return JSONResponse(answer.whole(choices), headers=headers)
        await stream.end(_last_events(answer, asked, choices))
        return None
    except ApiError as error:
        if not asked.streaming.is_on:
            raise
        await stream.events([error.body()])
        await stream.close()
        return None
    except (ConnectionError, asyncio.CancelledError):
        outcome.outcome = "cancelled"
        raise
    finally:
        late.cancel()
        watching.cancel()
        server.engine.cancel(job)
        server.in_flight.discard(job)
        server.metrics.answered(job, answer.prompt_tokens, outcome.tokens_out, first)


def _prepared(path: str, values: dict, server: Server):
    """(the request, names that were ignored, its job, the answer to be)."""
    name, defaults = values.get("model"), server.defaults
    adapter = name if isinstance(name, str) and name in server.adapted else None
    served = server.adapted.get(adapter, server.served)
    if path == "/v1/completions":
        asked, ignored = requests.completion(values, defaults)
        job, prompts = prepare.completion_job(asked, served)
        answer = Completions(asked, prompts, served)
    elif path == "/v1/fill":
        asked, ignored = requests.fill(values, defaults)
        job, outcome, prompt_tokens = prepare.fill_job(asked, served)
        answer = Fills(asked, outcome, prompt_tokens, served)
    else:
        asked, ignored = requests.chat(values, defaults)
        job, prompt_tokens = prepare.chat_job(asked, served)
        answer = Chats(asked, prompt_tokens, served)
    job.mailbox, job.model = asyncio.Queue(), adapter
    return asked, ignored, job, answer


def _admit(server: Server, job: Job) -> None:
    if server.status != "ok":
        raise draining()
    if not server.engine.could_hold(job):
        raise bad("max_tokens", "the request needs more memory for keys and values than --kv-cache-memory allows")
    if not server.engine.submit(job):
        raise ApiError(429, "too many requests are in flight (--max-requests)", "queue_full",
                       headers={"Retry-After": "1"})
    server.in_flight.add(job)


async def _next(job: Job, stream: Stream | None) -> tuple[int, News]:
    """The next news; comments on the stream meanwhile."""
    loop = asyncio.get_running_loop()
    while True:
        quiet = stream and loop.call_later(WAITING_SECONDS, job.mailbox.put_nowait, QUIET)
        try:
            found = await job.mailbox.get()
        finally:
            if quiet:
                quiet.cancel()
        if found is GONE:
            raise ConnectionResetError("the client has gone")
        if found is LATE:
            raise timed_out(time.monotonic() - job.arrived)
        if found is CUT:
            raise draining()
        if found is not QUIET:
            return found
        await stream.send(b": waiting\n\n")


async def _watch(request: Request, job: Job) -> None:
    """Puts a note into the mailbox when the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.mailbox.put_nowait(GONE)


def _entries(answer: Completions, number: int, scores: list, served: Served) -> list[Entry]:
    return prepare.prompt_entries(answer.prompts[number], scores, served)


def _last_events(answer, asked, choices: list[Choice]) -> list[dict]:
    if isinstance(answer, Fills):
        return [answer.whole(choices)]
    return [answer.final(sum(one.tokens for one in choices))] if asked.streaming.includes_usage else []


def _ready(server: Server) -> Served:
    if server.status == "loading":
        raise ApiError(503, "the model is being loaded", "loading", headers={"Retry-After": "5"})
    if server.status == "failed":
        raise ApiError(503, "the engine has failed; see the server's log", "failed")
    return server.served


async def _body(server: Server, request: Request) -> dict:
    """The request's JSON object. Raises ApiError for one that is too large, too slow or none."""
    check_content_type(request.headers.get("content-type", ""))
    too_large = ApiError(413, f"the body is larger than {server.limits.body} bytes (--max-body)", "body_too_large")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > server.limits.body:
        raise too_large
    data = bytearray()

    async def read() -> None:
        async for part in request.stream():
            data.extend(part)
            if len(data) > server.limits.body:
                raise too_large

    try:
        await asyncio.wait_for(read(), server.limits.read_seconds)
    except asyncio.TimeoutError:
        raise ApiError(408, "the request did not arrive in time (--read-timeout)", "request_incomplete") from None
    return parse_body(bytes(data))
