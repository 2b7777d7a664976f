# Read before Snakemake reads it, whose own messages for a file that is not YAML take many lines.
import sys
from pathlib import Path

from matvlm.config import ConfigError, read_yaml


def stop(message):
    """End with one line; an exception would bring a traceback of the Snakefile along."""
    sys.exit(f"error: {message}")


try:
    content = read_yaml(Path("params.yaml"))
except ConfigError as error:
    stop(error)
if not isinstance(content, dict):
    stop("params.yaml: must be a mapping of keys to values")
