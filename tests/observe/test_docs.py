"""The reference names every metric, as a scraper sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from krait_ws.observe.numbers import METRICS, Metric

REFERENCE = (Path(__file__).parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_the_reference_has_a_row_for_every_metric(metric: Metric) -> None:
    name = metric.name + ("_total" if metric.kind == "counter" else "")
    kind = "gauge" if metric.kind == "peak" else metric.kind
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    assert f"| `{name}` | {kind} | {labels} | {metric.meaning} |\n" in REFERENCE
