"""Every error that a user can mend, each with the exit code its verb ends with.

A message says what, where, got, wanted and what to do. Anything that is not a RaypipeError is a bug or a crash of
something below us: it keeps its traceback and ends with exit code 1.
"""


class RaypipeError(Exception):
    exit_code = 1


class ConfigError(RaypipeError):
    """Never worth a retry: unknown key, missing input, wrong column, model not found."""

    exit_code = 2


class DataError(RaypipeError):
    """The data cannot be used as asked: empty input, more clusters than samples, over the error budget."""

    exit_code = 3


class StorageError(RaypipeError):
    """Storage refuses: permission, read-only, disk full."""

    exit_code = 4


class Stopped(RaypipeError):
    """Stopped before the end; a rerun resumes."""

    exit_code = 5
