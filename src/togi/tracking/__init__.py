"""Trackers, which show metrics in addition to metrics.jsonl: one file for each, and their interface."""
