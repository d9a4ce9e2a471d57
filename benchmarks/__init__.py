"""Benchmarks of the worker. `python -m benchmarks` needs AMQP_URL and DATABASE_URL, which `make bench` provides."""
