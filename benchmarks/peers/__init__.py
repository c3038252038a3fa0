"""Whole jobs beside released tools that do them too; see benchmarks/README.md."""
