"""Schedules: each minute that matches becomes exactly one run, whoever notices it first."""
