"""Metrics for trackers, in addition to metrics.jsonl."""
