"""Benchmarks, one per file. Each measures any number of subjects and gives a table."""
