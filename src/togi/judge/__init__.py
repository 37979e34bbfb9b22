"""Judges: how one is asked, and how what it says is read. Pairwise and graded verdicts."""
