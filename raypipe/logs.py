"""Log lines: for people; or, where RAYPIPE_LOG=json says so, one JSON object a line for whatever collects a cluster's logs.

{"time", "level", "message"}, and while a stage is at work "run" and "stage"; of the error that ends a run also "exit_code".
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time

from raypipe import gauges
from raypipe.errors import ConfigError, RaypipeError

log = logging.getLogger("raypipe")
FORMATS = ("text", "json")


def configure() -> None:
    """For this process. ConfigError for a format that is not known."""
    if (wanted := os.environ.get("RAYPIPE_LOG", "text")) not in FORMATS:
        raise ConfigError(f"RAYPIPE_LOG: got {wanted}, wanted {' or '.join(FORMATS)}")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    log.setLevel(logging.INFO)
    if wanted == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_Json())


def say(error: RaypipeError) -> None:
    """The one line with which a run ends."""
    if os.environ.get("RAYPIPE_LOG") == "json":
        log.error("%s", error, extra={"exit_code": error.exit_code})
    else:
        print(f"raypipe: {error}", file=sys.stderr)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        told = {"time": when, "level": record.levelname.lower(), **gauges.current(), "message": record.getMessage()}
        told |= {"exit_code": record.__dict__["exit_code"]} if "exit_code" in record.__dict__ else {}
        told |= {"exception": self.formatException(record.exc_info)} if record.exc_info else {}
        return json.dumps(told, ensure_ascii=False)
