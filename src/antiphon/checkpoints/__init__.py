"""Other systems' checkpoints, one file per system: what a state dict is, and what it is called here."""

from antiphon.checkpoints.reading import Report, inspect, locate, read, recognise, report, weight_files

__all__ = ["Report", "inspect", "locate", "read", "recognise", "report", "weight_files"]
