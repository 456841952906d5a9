"""Benchmarks: one script per question; README.md beside this has the rules."""
