"""Chaos: workers under random faults, followed by a check of what happened to every message. Not part of the product.

Modules:

- `plan` says how long a run lasts, how many workers it has, and what must be true afterwards;
- `messages` generates messages from the seed, `hostile` and `askers` those of a stranger; `publishers` sends each one until
  the broker has confirmed it;
- `fleet` runs the workers and restarts any that end, as Kubernetes would;
- `faults` kills, stops, freezes and disconnects workers and services at random, and undoes it; `locks` locks rows, `nodes` does
  harm to a cluster;
- `collector` reads replies and dead letters; `queues` says when queues are empty; `audit` makes the database record each
  write of a row;
- `account` compares what was sent with what happened to it;
- `run` puts the parts together; `python -m tests.chaos --help` lists the options.
"""
