"""What a server counts, in Prometheus' text form. No label comes from a request."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

ROUTES = {"/v1/completions": "completions", "/v1/fill": "fill", "/v1/chat/completions": "chat"}
OUTCOMES = ("ok", "error", "rejected", "cancelled")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)


class Metrics:
    def __init__(self, model: str):
        self.model = model
        self._registry = CollectorRegistry()

        def made(kind, name: str, what: str, labels: tuple[str, ...] = (), **options):
            metric = kind(name, what, ("model", *labels), registry=self._registry, **options)
            return metric if labels else metric.labels(model)

        self._running = made(Gauge, "glm_requests_running", "Requests with rows in the batch")
        self._waiting = made(Gauge, "glm_requests_waiting", "Requests that wait for room")
        self._rows = made(Gauge, "glm_batch_rows", "Rows of the running batch")
        self._cache = made(Gauge, "glm_kv_cache_used_ratio", "Share of the budget of keys and values that is taken")
        self._requests = made(Counter, "glm_requests_total", "Requests that have ended", ("route", "outcome"))
        self._prompt = made(Counter, "glm_prompt_tokens_total", "Tokens of prompts, as usage counts them")
        self._generated = made(Counter, "glm_generated_tokens_total", "Tokens of answers, as usage counts them")
        self._first = made(Histogram, "glm_time_to_first_token_seconds", "From a request's arrival to its first token",
                           buckets=_SECONDS)
        self._token = made(Histogram, "glm_time_per_output_token_seconds", "Between tokens, on average over an answer",
                           buckets=_TOKEN_SECONDS)
        self._request = made(Histogram, "glm_request_seconds", "From a request's arrival to its end", buckets=_SECONDS)
        self._queue = made(Histogram, "glm_queue_seconds", "From a request's arrival to its first row in the batch",
                           buckets=_SECONDS)
        for route in ROUTES.values():
            for outcome in OUTCOMES:
                self._requests.labels(model, route, outcome)

    def text(self, counts: tuple[int, int, int, float]) -> bytes:
        """counts: those of the engine now."""
        for gauge, value in zip((self._running, self._waiting, self._rows, self._cache), counts, strict=True):
            gauge.set(value)
        return generate_latest(self._registry)

    def ended(self, route: str, outcome: str) -> None:
        self._requests.labels(self.model, route, outcome).inc()

    def answered(self, job, prompt_tokens: int, tokens: int, first: float | None) -> None:
        """A job that ran. first: when its first token came, on time.monotonic's clock."""
        now = time.monotonic()
        self._prompt.inc(prompt_tokens)
        self._generated.inc(tokens)
        self._request.observe(now - job.arrived)
        if job.begun is not None:
            self._queue.observe(job.begun - job.arrived)
        if first is not None:
            self._first.observe(first - job.arrived)
            if tokens > 1:
                self._token.observe((now - first) / (tokens - 1))
