"""Where speed is judged. Each module is run with `python -m`, against the services that the environment names."""
