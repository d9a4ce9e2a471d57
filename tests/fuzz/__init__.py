"""Coverage-guided fuzzing: `make fuzz`. It is not part of the tests, because it has no natural end."""
