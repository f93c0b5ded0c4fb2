"""What /metrics says, in Prometheus' text format: requests, uploads, what the libraries hold, the process."""

from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import Scope

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Figures:
    """Counters of one app, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "antiphon_requests", "Answered requests.", ("route", "method", "status"), registry=self._registry
        )
        self._latency = Histogram(
            "antiphon_request_seconds",
            "From a request's head to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._uploads = Counter("antiphon_uploads", "Sounds sent in.", ("outcome",), registry=self._registry)
        self._library = Gauge("antiphon_library", "What a library holds.", ("library", "what"), registry=self._registry)

    def request(self, scope: Scope, status: int, seconds: float) -> None:
        """Count an answer. A route is named by its template, whose number is bounded, unlike that of paths."""
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(route, method, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def upload(self, outcome: str) -> None:
        """Count a sound that was sent in: `embedded`, `refused`."""
        self._uploads.labels(outcome).inc()

    def library(self, name: str, stats: Callable[[], Mapping[str, int]]) -> None:
        """Show what a library holds (`files`, `windows`), as it is when it is asked for."""
        for what in stats():
            self._library.labels(name, what).set_function(partial(_held, stats, what))

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)


def _held(stats: Callable[[], Mapping[str, int]], what: str) -> float:
    return float(stats()[what])
