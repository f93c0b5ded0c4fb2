"""Towers: audio and text encoders, their contract and their weights."""
