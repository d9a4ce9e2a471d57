"""What the worker shows: logs, metrics, traces, and health over HTTP.

names     every metric and log event, with its meaning
watch     the worker's `Watch`: passes on to metrics and logs
metrics   Prometheus
logs      structlog, without secrets
tracing   whether traces are exported
spans     OpenTelemetry: the spans of messages and batches
asking    asks workers what `health` answers
history   an hour of what workers have answered and queues had, and its rates and quantiles
health    the HTTP server
"""
