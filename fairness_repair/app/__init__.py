"""From a language model to a fairer one on disk, with a report card."""
from .pipeline import repair
from .result import RepairResult

__all__ = ["repair", "RepairResult"]
