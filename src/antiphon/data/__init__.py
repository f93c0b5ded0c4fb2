"""Pairs of sounds and words: the one table, batches, public sets."""
