"""What the worker shows: logs, metrics, traces, and health over HTTP.

names     every metric, log event and span, with its meaning
metrics   Prometheus metrics
logs      structlog
tracing   OpenTelemetry
watch     counts and logs what the worker and the store do
health    the HTTP server: /livez, /readyz, /metrics, /status
"""
