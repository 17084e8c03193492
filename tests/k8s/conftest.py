import pytest

from tests.k8s.rendering import OVERLAYS, render
from tests.k8s.schemas import Crds


@pytest.fixture(scope="session")
def crds(shared) -> Crds:
    """KubeRay 1.7's definitions."""
    return Crds(shared / "kuberay-crds")


@pytest.fixture(scope="session")
def rendered() -> dict[str, list[dict]]:
    """Overlay -> its objects. Copy before you change one."""
    return {overlay: render(overlay) for overlay in OVERLAYS}
