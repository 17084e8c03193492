"""Imports point one way, and what must answer at once loads nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "raypipe"
HEAVY = ("ray", "torch", "transformers", "vllm", "pandas", "sentence_transformers", "sklearn")
MAY_IMPORT = {  # of raypipe, beside itself; a module that is not here may import what it likes
    "errors": set(),
    "local": {"errors"},
    "s3_errors": {"errors"},
    "s3": {"errors", "local", "s3_errors"},
    "store": {"errors", "local", "s3"},
    "section": set(),
    "resources": {"section"},
    "sources": {"section"},
    "config": {"resources", "section", "sources"},
    "config_file": {"config", "errors", "store", "section"},
    "lake": {"errors", "local", "ops", "s3"},
    "identity": {"errors", "local", "ops", "store"},
    "part": {"errors", "ops", "store"},
    "stage": {"config", "errors", "identity", "lake", "ops", "part", "store"},
    "envelope": {"errors", "part", "store"},
    "stopping": {"errors"},
    "owner": {"errors", "stopping", "store"},
    "gate": set(),
    "container": set(),
    "gauges": set(),
    "logs": {"errors", "gauges"},
    "cost": {"errors", "ops", "part", "store", "resources"},
    "nodes": {"errors"},
    "sizing": {"container", "errors", "nodes", "resources"},
    "items": {"envelope", "errors", "gauges", "sizing", "stopping", "resources"},
    "read_ahead": {"part", "store"},
    "folds": {"items", "part", "read_ahead", "sizing", "resources"},
    "session": {"errors", "stopping"},
    "repair": {"errors", "items", "part", "store"},
    "streams": {"envelope", "errors", "gate", "part", "read_ahead", "sizing", "store", "resources"},
    "parts": {
        "items",
        "envelope",
        "errors",
        "gate",
        "gauges",
        "part",
        "sizing",
        "stopping",
        "store",
        "streams",
        "resources",
    },
    "ops": {"config", "errors", "sandbox"},
    "sandbox": {"errors"},
    "models": {"errors", "ops"},
    "stages": {
        "config",
        "cost",
        "errors",
        "gate",
        "given",
        "identity",
        "lake",
        "model_card_figures",
        "models",
        "ops",
        "packs",
        "pairs",
        "semantic",
        "folds",
        "items",
        "owner",
        "part",
        "parts",
        "sampled",
        "sandbox",
        "sizing",
        "stage",
        "slices",
        "sources",
        "stopping",
        "store",
        "resources",
    },
    "slices": {"lake", "ops", "store"},
    "pairs": {"part"},
    "semantic": {"errors", "items", "ops", "pairs", "part", "parts", "resources", "store"},
    "sampled": {"ops", "part", "read_ahead"},
    "given": {"errors", "folds", "items", "lake", "ops", "part", "read_ahead", "store"},
    "recipes": {"config", "identity", "lake", "ops", "stage"},
    "growth": {"lake", "stage", "store"},
    "pipeline": {
        "cost",
        "growth",
        "gauges",
        "recipes",
        "stages",
        "repair",
        "session",
        "config",
        "errors",
        "identity",
        "lake",
        "ops",
        "part",
        "s3",
        "stage",
        "stopping",
        "store",
    },
    "packs": {"ops", "part", "store"},
    "padding": {"ops", "pipeline", "sampled"},
    "model_card_figures": {"config", "identity", "ops", "stage", "store"},
    "screen": {"cost", "identity", "ops", "padding", "pipeline", "store"},
    "records": {"errors", "recipes", "s3", "stage", "store"},
    "replay": {"config", "errors", "lake", "ops", "part", "pipeline", "stages", "store"},
    "explanation": {"config", "errors", "ops", "packs", "part", "records", "stage", "store"},
    "progress": {"cost", "owner", "records", "screen", "stage", "store"},
    "comparison": {"identity", "ops", "part", "pipeline", "sampled", "screen", "stage", "store"},
    "experiment_file": {"config", "config_file", "errors", "section"},
    "ablation": {
        "comparison",
        "config",
        "errors",
        "experiment_file",
        "identity",
        "ops",
        "packs",
        "part",
        "pipeline",
        "recipes",
        "sampled",
        "session",
        "stage",
        "store",
    },
    "ablation_screen": {"ablation", "experiment_file", "ops", "screen", "store"},
    "sweep": {
        "config",
        "errors",
        "folds",
        "identity",
        "ops",
        "part",
        "pipeline",
        "s3",
        "screen",
        "session",
        "stage",
        "stopping",
        "store",
    },
    "export_files": {"ops", "part", "store"},
    "export": {
        "config",
        "errors",
        "export_files",
        "items",
        "ops",
        "part",
        "pipeline",
        "recipes",
        "s3",
        "screen",
        "session",
        "stage",
        "store",
    },
    "garbage": {"errors", "local", "recipes", "records", "screen", "store"},
    "machine": {"container", "errors", "identity", "local", "screen"},
    "reach": {"config", "errors", "identity", "lake", "local", "machine", "ops", "s3", "s3_errors", "screen", "store"},
    "doctor": {
        "config",
        "config_file",
        "container",
        "errors",
        "identity",
        "machine",
        "nodes",
        "ops",
        "reach",
        "s3",
        "sandbox",
        "sizing",
        "store",
        "resources",
    },
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} if node.module != "raypipe" else {f"raypipe.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers(path):
    """A back edge makes what could be tested without Ray need Ray."""
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("raypipe.")}
    if layer in MAY_IMPORT:
        assert ours - {layer} <= MAY_IMPORT[layer]
    if layer in (
        "ops",
        "models",
        "local",
        "s3",
        "s3_errors",
        "store",
        "part",
        "stage",
        "config",
        "lake",
        "errors",
        "envelope",
        "owner",
        "stopping",
    ):
        assert not any(name.split(".")[0] == "ray" for name in imported(path)), "knows Ray"


@pytest.mark.parametrize("path", sorted(set((PACKAGE / "sandbox").glob("*.py")) - {PACKAGE / "sandbox/supervisor.py"}))
def test_the_sandbox_runs_on_the_standard_library(path):
    """Inside there is nothing else, and from outside it is a package of another name."""
    found = ast.walk(ast.parse(path.read_text()))
    names = [alias.name for node in found if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in found if isinstance(node, ast.ImportFrom) and not node.level]
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_no_stage_imports_another():
    """Each stage is deepened alone; what two need is in ops or stage."""
    for path in (PACKAGE / "stages").glob("*.py"):
        stages = {name for name in imported(path) if name.startswith("raypipe.stages.")}
        assert not stages, path.name


@pytest.mark.parametrize(
    "module",
    [
        "raypipe",
        "raypipe.cli",
        "raypipe.pipeline",
        "raypipe.doctor",
        "raypipe.sweep",
        "raypipe.export",
        "raypipe.ablation_screen",
    ],
)
def test_light_imports(module):
    """A finished run, `plan` and `status` answer in a second or two; importing torch alone takes longer."""
    code = f"import {module}, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert found.stderr == ""


def test_a_driver_loads_no_network():
    """It only hands out parts: transformers would cost it seconds and half a gigabyte before the first of them."""
    stages = [f"raypipe.stages.{path.stem}" for path in (PACKAGE / "stages").glob("*.py")]
    code = (
        f"import {', '.join(stages)}, sys; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_ops_and_models_need_no_ray():
    """They run on bare GPU machines. In one process, as torch alone takes seconds to load."""
    names = [
        f"raypipe.{path.parent.name}.{path.stem}"
        for kind in ("ops", "models")
        for path in sorted((PACKAGE / kind).glob("[a-z]*.py"))
    ]
    assert len(names) > 30
    code = f"import importlib, sys\nfor name in {names}:\n    importlib.import_module(name)\n    assert 'ray' not in sys.modules, name"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
