"""`python -m benchmarks.report`: committed results as `docs/performance.md` and its picture."""
