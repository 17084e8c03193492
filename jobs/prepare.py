"""All that needs no training, ingest to pack: `python jobs/prepare.py CONFIG [key.path=value ...]`, also under `ray job submit`."""

import sys

from raypipe.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:], "--until", "pack"]))
