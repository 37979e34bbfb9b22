"""Stages that make, change, select or score records."""
