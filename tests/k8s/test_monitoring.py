"""A misspelt metric is an alert that never comes and a panel that stays empty."""

from pathlib import Path

import ray

from tests.k8s.monitoring import OURS, RARE, expressions, metric_names


def known_to_ray() -> str:
    """Ray's own dashboards and definitions, as text."""
    dashboard = Path(ray.__file__).parent / "dashboard" / "modules"
    files = [*(dashboard / "metrics" / "dashboards").glob("*.py"), dashboard / "reporter" / "reporter_agent.py"]
    return "\n".join(path.read_text() for path in files)


def test_every_metric_is_one_of_rays_or_ours():
    """By Ray's source alone; what a running job exports is another test's."""
    text = known_to_ray()
    unknown = {name for name in metric_names() - OURS if name not in text and name.removeprefix("ray_") not in text}
    assert not unknown, f"k8s/overlays/monitoring: {sorted(unknown)} are no metrics of Ray {ray.__version__}"
    assert RARE.keys() <= metric_names() and metric_names() >= OURS


def test_every_series_is_kept_apart_by_cluster():
    """Two runs at a time would be added up, and the one that is stuck be hidden by the other."""
    assert not [expression for expression in expressions() if "ray_io_cluster" not in expression]


def test_parentheses_are_balanced():
    """Prometheus refuses the whole file of rules for one."""
    for expression in expressions():
        assert all(expression.count(a) == expression.count(b) for a, b in ("()", "[]", "{}")), expression
