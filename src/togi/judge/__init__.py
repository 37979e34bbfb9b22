"""Judges: asks a judge model and reads its replies. Pairwise and graded verdicts."""
