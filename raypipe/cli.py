"""The verbs. Exit codes are those of raypipe.errors; anything unforeseen keeps its traceback and ends with 1."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from raypipe import garbage, logs, pipeline, progress, screen, stopping
from raypipe.config import Config
from raypipe.config_file import load_config, load_configs
from raypipe.doctor import checks
from raypipe.errors import ConfigError, RaypipeError, Stopped
from raypipe.explanation import explain
from raypipe.growth import since_last_run
from raypipe.ops.formats import FORMATS
from raypipe.s3 import patience
from raypipe.store import Folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit code."""
    options = _parse(argv)
    try:
        logs.configure()
        return options.verb(options) or 0
    except RaypipeError as error:
        logs.say(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("raypipe: stopped. A rerun goes on from the parts that are committed", file=sys.stderr)
        return Stopped.exit_code


def _run(options: argparse.Namespace) -> None:
    started = time.monotonic()
    configs = load_configs(options.config, options.overrides)
    with stopping.listening():
        done = pipeline.run_all(configs, from_stage=options.from_stage, until=options.until, repair=options.repair)
    seconds = screen.duration(time.monotonic() - started)
    if len(done) == 1:
        print(_shown(done[0]), f"done in {seconds}", screen.summary(*_found(done[0])), sep="\n")
    else:
        print(*map(_shown_run, done), f"done in {seconds}", *_compared(done), sep="\n\n")


def _shown_run(planned: pipeline.Plan) -> str:
    return "\n".join(
        [f"run {planned.config.name}", progress.stage_table(*_found(planned)), screen.summary(*_found(planned))]
    )


def _compared(plans: Sequence[pipeline.Plan]) -> list[str]:
    from raypipe import comparison  # loads Arrow and the pages

    found = comparison.compare(plans)
    return [comparison.shown(*found)] if found else []


def _plan(options: argparse.Namespace) -> None:
    with patience(pipeline.PLAN_PATIENCE_S):
        for config in load_configs(options.config, options.overrides):
            planned = pipeline.plan(config, options.from_stage)
            if options.measure and not planned["score"].done:
                pipeline.measure(planned)
            grown = since_last_run(pipeline.recorded(config), planned.lake, planned["ingest"].folder)
            print(_shown(planned), *grown, *screen.cost_words(planned), *screen.padding_words(planned), sep="\n")


def _status(options: argparse.Namespace) -> None:
    with patience(pipeline.PLAN_PATIENCE_S):
        print(progress.status(Folder.at(options.root, options.endpoint)))


def _explain(options: argparse.Namespace) -> None:
    ids, config = _words_and_config(options)
    given = [*ids, *filter(None, [options.text])]
    if len(given) != 1:
        raise ConfigError(f"explain: got {' '.join(given) or 'nothing'}, wanted one SAMPLE_ID, or --text TEXT")
    words = {"sample_id": None if options.text else ids[0], "text": options.text, "endpoint": config.storage.endpoint}
    with patience(pipeline.PLAN_PATIENCE_S):
        said = explain(config.storage.root, config.name, **words)
    lines = [(stage * (n == 0), line) for stage, words in said for n, line in enumerate(words.splitlines())]
    print(screen.aligned(lines))


def _sweep_k(options: argparse.Namespace) -> None:
    from raypipe import sweep

    numbers, config = _words_and_config(options)
    with stopping.listening():
        print(sweep.shown(*sweep.sweep(config, numbers)))


def _ablate(options: argparse.Namespace) -> None:
    from raypipe import ablation, ablation_screen  # loads Arrow and the pages
    from raypipe.experiment_file import load_experiment

    experiment, cells = load_experiment(options.config, options.overrides)
    with patience(pipeline.PLAN_PATIENCE_S):
        plans = ablation.plan(experiment, cells)
        print(ablation_screen.shown_plan(experiment, cells, plans), flush=True)
    if not options.plan:
        with stopping.listening():
            print(ablation_screen.shown(*ablation.ablate(experiment, cells, plans)))


def _export(options: argparse.Namespace) -> None:
    from raypipe import export

    config = load_config(options.config, options.overrides)
    with stopping.listening():
        print(export.shown(export.export(config, options.dir, options.format)))


def _replay(options: argparse.Namespace) -> None:
    from raypipe import replay  # loads Arrow

    config = load_config(options.config, options.overrides)
    with stopping.listening():
        print(replay.replay(config, options.file))


def _words_and_config(options: argparse.Namespace) -> tuple[list[str], Config]:
    """Of a verb that takes words of its own beside overrides."""
    overrides = [word for word in options.overrides if "=" in word]
    return [word for word in options.overrides if "=" not in word], load_config(options.config, overrides)


def _gc(options: argparse.Namespace) -> None:
    root = Folder.at(options.root, options.endpoint)
    with patience(pipeline.PLAN_PATIENCE_S):
        found = garbage.find_garbage(root, min_age_h=options.min_age_h)
    print(garbage.listing(found), flush=True)
    if options.delete:
        gone = list(garbage.delete_garbage(found))
        print(f"deleted {len(gone):,} folders, {screen.size(sum(folder.size for folder in gone))}")
    elif found.doomed or found.temporaries:
        print("nothing was deleted; --delete does it")


def _doctor(options: argparse.Namespace) -> int:
    """The exit code of the first check that failed."""
    failures = []
    for check in checks(options.config, options.overrides):
        print(check, flush=True)
        failures += [check.exit_code] if check.state == "FAIL" else []
    return failures[0] if failures else 0


def _synth(options: argparse.Namespace) -> None:
    from raypipe.synth import write_lake

    account = write_lake(Folder.at(options.dir, options.endpoint), num_samples=options.num_samples, seed=options.seed)
    print(f"{options.dir}: {screen.planted(account)}")


def _shown(planned: pipeline.Plan) -> str:
    return "\n".join([screen.heading(planned), progress.stage_table(*_found(planned))])


def _found(planned: pipeline.Plan) -> tuple[dict[str, Folder], screen.Manifests]:
    """By stage: folders, and manifests of those that are finished."""
    manifests = {step.stage.name: step.manifest for step in planned.stages if step.manifest is not None}
    return {step.stage.name: step.folder for step in planned.stages}, manifests


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
    run = verbs.add_parser("run", help="run what is left of a config's stages")
    run.add_argument("--until", metavar="STAGE", help="this stage and all before it")
    run.add_argument("--repair", metavar="STAGE", help="check this stage's parts first; damaged ones are made again")
    run.set_defaults(verb=_run)
    plan = verbs.add_parser("plan", help="what would run, what is done; starts nothing")
    plan.add_argument("--measure", action="store_true", help="score 500 rows here, to know what scoring will cost")
    plan.set_defaults(verb=_plan)
    sweep_k = verbs.add_parser("sweep-k", help="how many clusters? Fits several k on a sample of the embeddings")
    sweep_k.set_defaults(verb=_sweep_k)
    ablate = verbs.add_parser("ablate", help="is one selection better than another? Runs of several arms and seeds")
    ablate.add_argument(
        "--plan", action="store_true", help="which runs, what is done, what they can show; starts nothing"
    )
    ablate.set_defaults(verb=_ablate)
    explain = verbs.add_parser("explain", help="what happened to a sample at every stage, in words")
    explain.add_argument("--text", metavar="TEXT", help="words of its instruction, in place of its id")
    explain.set_defaults(verb=_explain)
    export = verbs.add_parser("export", help="the selection as files for other trainers, with a dataset card")
    export.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of the files (default: %(default)s)")
    export.set_defaults(verb=_export)
    replay = verbs.add_parser(
        "replay", help="rows that ingest rejected, as a file to mend; then the mended file, ingested"
    )
    replay.set_defaults(verb=_replay)
    doctor = verbs.add_parser("doctor", help="versions, accelerators, credentials, reach of every path of a config")
    doctor.set_defaults(verb=_doctor)
    for with_config in (run, plan, sweep_k, ablate, explain, export, replay, doctor):
        with_config.add_argument(
            "config",
            metavar="EXPERIMENT" if with_config is ablate else "CONFIG",
            help="YAML file",
            nargs="?" if with_config is doctor else None,
        )
        if with_config is export:
            export.add_argument("dir", metavar="DIR", help="folder or s3:// URL, empty or with this export begun")
        if with_config is replay:
            replay.add_argument("file", metavar="FILE", help="written where it is not there; may be s3://")
        words = {sweep_k: "K | key.path=value", explain: "SAMPLE_ID | key.path=value"}.get(
            with_config, "key.path=value"
        )
        with_config.add_argument("overrides", nargs="*", metavar=words, help="a value is YAML")
    for whole in (run, plan):
        whole.add_argument(
            "--from",
            dest="from_stage",
            metavar="STAGE",
            help="take all before it from the run's record; the lake is not listed",
        )
    status = verbs.add_parser("status", help="progress and results of the runs under a root, from storage alone")
    status.set_defaults(verb=_status)
    gc = verbs.add_parser("gc", help="list, and with --delete remove, folders that no run names")
    gc.add_argument("--delete", action="store_true", help="remove what is listed; without it nothing is removed")
    gc.add_argument("--min-age-h", type=float, default=garbage.MIN_AGE_H, metavar="HOURS", help="younger ones are kept")
    gc.set_defaults(verb=_gc)
    for by_root in (status, gc):
        by_root.add_argument("root", metavar="ROOT")
    synth = verbs.add_parser("synth", help="a synthetic code-instruction lake of any size")
    synth.add_argument("dir", metavar="DIR")
    synth.add_argument("--num-samples", type=int, default=3000)
    synth.add_argument("--seed", type=int, default=0)
    synth.set_defaults(verb=_synth)
    for by_place in (status, gc, synth):
        by_place.add_argument("--endpoint", metavar="URL", help="of S3, other than AWS")
    return parser


if __name__ == "__main__":
    sys.exit(main())
