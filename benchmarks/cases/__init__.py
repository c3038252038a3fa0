"""What is timed: a module an operator, found by `benchmarks.harness.discover`."""
