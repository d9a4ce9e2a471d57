"""Coverage-guided fuzzing, by hand: `make fuzz`. Not part of the tests: it has no end of its own."""
