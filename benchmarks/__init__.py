"""Benchmarks: one file a question; the rules are in README.md beside this."""
