"""Whether traces are exported, as OpenTelemetry's environment variables say.

Without them OpenTelemetry is not even imported: only `spans` imports it, and only this function imports `spans`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from task_activity_log.telemetry.spans import Tracing

log = structlog.get_logger(__name__)


def from_environment(environment: Mapping[str, str], requests_queue: str, replies_exchange: str) -> "Tracing | None":
    """Tracing as the environment asks for it. None if it does not, or if the packages are not installed."""
    endpoint = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if (
        not endpoint
        or environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
        or environment.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp"
    ):
        return None
    try:
        from task_activity_log.telemetry.spans import Tracing, make_exporter  # noqa: PLC0415 - needs the extra `otel`
    except ImportError:
        log.warning("tracing_unavailable", advice="pip install '.[otel]' in the folder of the worker's source")
        return None
    traces = Tracing(make_exporter(environment), requests_queue, replies_exchange)
    log.info("tracing", endpoint=endpoint)
    return traces
