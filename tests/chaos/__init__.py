"""Chaos: workers under random faults, and an account of every message afterwards. Not part of the product.

The map:

- `plan` says how long, how many workers, and what must hold;
- `messages` are made at random from the seed, `publishers` send them until the broker has confirmed each;
- `fleet` runs the workers as Kubernetes would: what ends is started again;
- `faults` kill, stop, freeze and cut everything, at random, and undo it;
- `collector` reads replies and dead letters, `audit` has the database write down each write of a row;
- `account` compares what was sent with what became of it;
- `run` puts them together; `python -m tests.chaos --help` says how to start it.
"""
