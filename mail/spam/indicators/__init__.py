"""Deterministic findings: the same bytes and the same context always give the same ones."""
