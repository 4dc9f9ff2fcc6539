"""Benchmarks: `make bench`, or `make bench ONLY=decode`. They measure; they assert nothing."""
