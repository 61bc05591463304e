"""The metrics as Prometheus reads them, made by prometheus-client (the extra ``metrics``).

Its own multiprocess mode keeps a value per process in files and takes no collectors; here the numbers come from
samples, so the workers share those (``shared.py``), and this module only writes them out. What a site counts with
prometheus-client itself is shown too: with several workers only where ``PROMETHEUS_MULTIPROC_DIR`` is set, because
the numbers of whichever worker answers would be worse than none.

Thread: any but the network loop: a site's own collectors may block.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator
from typing import Any

from krait_ws.errors import ConfigError
from krait_ws.observe.numbers import METRICS, Metric, Numbers


def check_installed() -> None:
    """
    Raises:
        ConfigError: prometheus-client is not there.
    """
    if importlib.util.find_spec("prometheus_client") is None:
        raise ConfigError("metrics: needs the package prometheus-client: pip install 'krait-ws[metrics]'")


def exposition(numbers: Numbers, accept: str, *, shared: bool) -> tuple[bytes, str]:
    """What a scraper gets: the body and its type.

    Args:
        accept: The request's Accept header: OpenMetrics or the older text format.
        shared: Whether there may be several workers.
    """
    from prometheus_client.exposition import choose_encoder

    encode, kind = choose_encoder(accept)
    body: bytes = encode(_Collectors([_Ours(numbers), *_of_site(shared=shared)]))
    return body, kind


class _Collectors:
    """Several collectors where prometheus-client wants a registry."""

    def __init__(self, collectors: Iterable[Any]) -> None:
        self._collectors = collectors

    def collect(self) -> Iterator[Any]:
        for collector in self._collectors:
            yield from collector.collect()


class _Ours:
    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers

    def collect(self) -> Iterator[Any]:
        for metric in METRICS:
            yield _family(metric, self._numbers.get(metric.name, {}))


def _family(metric: Metric, values: dict[tuple[str, ...], float]) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
        histograms: dict[tuple[str, ...], dict[str, float]] = {}
        for labels, value in values.items():
            histograms.setdefault(labels[:-1], {})[labels[-1]] = value
        for labels, parts in histograms.items():
            histogram.add_metric(labels, _cumulative(parts), parts["sum"])
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.meaning, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _cumulative(parts: dict[str, float]) -> list[tuple[str, float]]:
    """Prometheus counts in each bucket what is in the ones below too."""
    buckets = []
    count = 0.0
    for bound in sorted((bound for bound in parts if bound != "sum"), key=float):
        count += parts[bound]
        buckets.append((bound, count))
    return buckets


def _of_site(*, shared: bool) -> list[Any]:
    """What shows the site's own metrics, and those of the process."""
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    if not shared:
        return [REGISTRY]
    if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        return []
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return [registry]
