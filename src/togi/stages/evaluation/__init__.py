"""Stages that measure models and judges."""
