"""Protocols around the metrics, and the report."""
