"""Fine-tuning and its report, from packs that prepare.py made: `python jobs/train.py CONFIG [key.path=value ...]`, also under `ray job submit`."""

import sys

from raypipe.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:], "--from", "train"]))
