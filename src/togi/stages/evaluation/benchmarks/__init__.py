"""Benchmarks as values: each is a settings file, a work file and one line in table.py."""
