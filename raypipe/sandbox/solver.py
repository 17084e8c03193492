"""Inside: holds the code, calls its function with what the judge sends, and answers with plain data.

Nothing here is safe from the code, and nothing here needs to be: an answer is all that it can give.
"""

from __future__ import annotations

import signal
import sys
import types
from typing import Any

from .plain import Gone, Pipe, packed, unpack

NAME = "solution"  # of the module that the code is: what stands under `if __name__ == "__main__"` is not run


def solve(judge: Pipe) -> None:
    """First {code, entry_point}, then {call: arguments} as often as wanted; each answered by {value} or {raised, said}.

    Each within its {cpu_s}, or SIGPROF ends the process: honest code that runs for ever costs that much and no more.
    """
    given = judge.receive()
    signal.setitimer(signal.ITIMER_PROF, given["cpu_s"])
    module = types.ModuleType(NAME)
    sys.modules[NAME] = module
    try:
        exec(compile(given["code"], NAME, "exec", dont_inherit=True), module.__dict__)  # what this process is for
        function = getattr(module, given["entry_point"])
    except BaseException as error:  # noqa: BLE001  whatever the code raises is an answer
        judge.send(_raised(error))
        return
    judge.send({"value": None})
    while True:
        signal.setitimer(signal.ITIMER_PROF, 0)
        asked = judge.receive()
        arguments = unpack(asked["call"])
        signal.setitimer(signal.ITIMER_PROF, asked["cpu_s"])
        try:
            judge.send({"value": packed(function(*arguments))})
        except Gone:
            return
        except BaseException as error:  # noqa: BLE001
            judge.send(_raised(error))


def _raised(error: BaseException) -> dict[str, Any]:
    try:
        said = str(error)[:200]
    except BaseException:  # noqa: BLE001  an error may bring its own str
        said = ""
    return {"raised": type(error).__name__, "said": said}
