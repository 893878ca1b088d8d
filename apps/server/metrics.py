"""/metrics, in the text format of Prometheus."""

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from edgert.watching import used_bytes

from .service import EngineService

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """What is counted of a service's requests. Names that begin with edgert_model begin anew when a model is loaded."""

    def __init__(self, service: EngineService) -> None:
        self._service = service
        self._registry = CollectorRegistry()
        self.requests = Counter("edgert_requests", "Requests by path and status", ["path", "status"],
                                registry=self._registry)
        self.seconds = Histogram("edgert_answer_seconds", "Time from a request to the end of its answer",
                                 buckets=_SECONDS, registry=self._registry)
        for name, help in (
                ("tokens", "Generated tokens"), ("prompt_tokens", "Tokens of prompts"),
                ("cached_tokens", "Tokens of prompts that were in the cache"), ("drafted", "Tokens that were guessed"),
                ("accepted", "Guesses that were right"), ("answers", "Requests that were answered")):
            self._gauge(f"edgert_model_{name}", help, partial(self._count, name))
        self._gauge("edgert_model_ready", "1 when the model can answer", lambda: service.state == "ready")
        self._gauge("edgert_queue_length", "Requests that wait", lambda: service.waiting)
        self._gauge("edgert_memory_bytes", "Memory that the process uses", lambda: used_bytes(service.watch))
        self._gauge("edgert_memory_budget_bytes", "Memory that it may use",
                    lambda: service.watch.budget if service.watch else 0)
        self._gauge("edgert_model_flash_read_bytes", "Bytes read from flash",
                    lambda: service.watch.flash.read if service.watch else 0)
        for name, help in (
                ("needed", "Experts that were needed, once for each pass"),
                ("missed", "Of these were not in memory, nor on their way there"),
                ("guessed", "Experts that were guessed and not in memory"), ("right", "Of these were needed"),
                ("bytes", "Bytes of experts that were read")):
            self._gauge(f"edgert_model_experts_{name}", help, partial(self._of_experts, name))

    def _of_experts(self, name: str) -> float:
        watch = self._service.watch
        return float(getattr(watch.experts, name, 0)) if watch else 0.0

    def _count(self, name: str) -> float:
        return float(getattr(self._service.counts, name))

    def _gauge(self, name: str, help: str, value: Callable[[], float]) -> None:
        Gauge(name, help, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        return generate_latest(self._registry)
