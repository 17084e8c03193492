"""matplotlib, which only plots of benchmarks need: put beside the environment when it is first asked for."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from benchmarks.record import PROJECT

PACKAGES = "matplotlib==3.11.2 contourpy==1.3.3 kiwisolver==1.5.1 cycler==0.12.1 pyparsing==3.3.3 fonttools==4.68.0"
FOLDER = PROJECT / "build" / "plotting"


def pyplot() -> Any:
    if not (FOLDER / "matplotlib").is_dir():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(FOLDER)]
        subprocess.run([*install, *PACKAGES.split()], check=True)
    sys.path.append(str(FOLDER))
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
