"""Benchmarks, one a file: each measures any number of subjects and gives a table."""
