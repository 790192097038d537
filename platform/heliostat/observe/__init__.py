"""What a run tells about itself: events, metrics, where its time went, progress, logs and reports."""

from heliostat.observe.events import Event, EventType, EventWriter, read_events
from heliostat.observe.metrics import MetricsWriter, StepMetrics, merged_curve, read_metrics

__all__ = [
    "Event",
    "EventType",
    "EventWriter",
    "MetricsWriter",
    "StepMetrics",
    "merged_curve",
    "read_events",
    "read_metrics",
]
