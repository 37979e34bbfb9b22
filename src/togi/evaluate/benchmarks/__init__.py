"""Benchmarks, one per file. Each measures any number of subjects and returns a table."""
