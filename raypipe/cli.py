"""The verbs. Exit codes are those of raypipe.errors; anything unforeseen keeps its traceback and ends with 1."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence

from raypipe import pipeline, screen, stopping
from raypipe.config import load_config
from raypipe.errors import RaypipeError, Stopped
from raypipe.store import Folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit code."""
    options = _parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("raypipe").setLevel(logging.INFO)
    try:
        options.verb(options)
    except RaypipeError as error:
        print(f"raypipe: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("raypipe: stopped. A rerun goes on from the parts that are committed", file=sys.stderr)
        return Stopped.exit_code
    return 0


def _run(options: argparse.Namespace) -> None:
    started = time.monotonic()
    config = load_config(options.config, options.overrides)
    with stopping.listening():
        done = pipeline.run(config, from_stage=options.from_stage, until=options.until)
    seconds = time.monotonic() - started
    print(
        screen.heading(done),
        screen.stage_table(done),
        f"done in {screen.duration(seconds)}",
        screen.summary(done),
        sep="\n",
    )


def _plan(options: argparse.Namespace) -> None:
    planned = pipeline.plan(load_config(options.config, options.overrides), options.from_stage)
    print(screen.heading(planned), screen.stage_table(planned), sep="\n")


def _status(options: argparse.Namespace) -> None:
    print(screen.status(Folder.at(options.root, options.endpoint)))


def _synth(options: argparse.Namespace) -> None:
    from raypipe.synth import write_lake

    account = write_lake(Folder.at(options.dir, options.endpoint), num_samples=options.num_samples, seed=options.seed)
    print(f"{options.dir}: {screen.planted(account)}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Overrides may stand before and after options, which argparse alone cannot read below a verb."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if not hasattr(options, "overrides") or any(word.startswith("-") for word in rest):
        parser.parse_args(argv)  # says what is wrong and exits with 2
    else:
        options.overrides += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "raypipe", description="Pick the part of a code-instruction lake that is worth training on, and train on it."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, verb, text in (
        ("run", _run, "run what is left of a config's stages"),
        ("plan", _plan, "what would run, what is done; starts nothing"),
    ):
        with_config = verbs.add_parser(name, help=text)
        with_config.add_argument("config", metavar="CONFIG", help="YAML file")
        with_config.add_argument("overrides", nargs="*", metavar="key.path=value", help="a value is YAML")
        with_config.add_argument(
            "--from",
            dest="from_stage",
            metavar="STAGE",
            help="take all before it from the run's record; the lake is not listed",
        )
        if verb is _run:
            with_config.add_argument("--until", metavar="STAGE", help="this stage and all before it")
        with_config.set_defaults(verb=verb)
    status = verbs.add_parser("status", help="progress and results of the runs under a root, from storage alone")
    status.add_argument("root", metavar="ROOT")
    status.set_defaults(verb=_status)
    synth = verbs.add_parser("synth", help="a synthetic code-instruction lake of any size")
    synth.add_argument("dir", metavar="DIR")
    synth.add_argument("--num-samples", type=int, default=3000)
    synth.add_argument("--seed", type=int, default=0)
    synth.set_defaults(verb=_synth)
    for by_place in (status, synth):
        by_place.add_argument("--endpoint", metavar="URL", help="of S3, other than AWS")
    return parser


if __name__ == "__main__":
    sys.exit(main())
