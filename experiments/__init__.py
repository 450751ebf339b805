"""Launchers: thin absl programs, run as `python -m experiments.NAME`."""
