"""What the worker shows: logs, metrics, and health over HTTP."""
