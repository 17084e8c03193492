"""raypipe picks the part of a code-instruction lake that is worth training on, and trains on it."""

from raypipe.config_file import load_config
from raypipe.explanation import explain
from raypipe.pipeline import plan, run
from raypipe.records import read

__version__ = "0.1.0"
__all__ = ["__version__", "explain", "load_config", "plan", "read", "run"]
