"""Benchmarks: each has a settings file, a work file and one line in table.py."""
