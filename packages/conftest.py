"""Test support for all packages: slow tests, and tests on simulated devices."""

import importlib.util
import os
import subprocess
import sys
import types
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CHILD = "CHAPBOOK_TEST_DEVICES"
CHILDREN = pytest.StashKey[dict]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    # Core's light tests run where neither is installed.
    if importlib.util.find_spec("jaxtyping") and importlib.util.find_spec("beartype"):
        from jaxtyping import install_import_hook

        # The hook takes a name that it can import.
        sys.modules["chapbook_checks"] = module = types.ModuleType("chapbook_checks")
        module.__dict__["checked"] = _checker()
        install_import_hook(_modules_with_shapes(), "chapbook_checks.checked")
    if count := os.environ.get(CHILD):
        from chapbook.core import simulate

        simulate(int(count))


def _checker() -> Callable:
    """Returns a decorator that checks every call; any number of NumPy counts as one of Python."""
    import numpy as np
    from beartype import BeartypeConf, FrozenDict, beartype

    numbers = {int: int | np.integer, float: float | int | np.number}
    overrides = FrozenDict(numbers)
    return beartype(conf=BeartypeConf(hint_overrides=overrides))


@pytest.fixture(autouse=True)
def _unchecked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lets a test marked `wrong_types` pass what the signatures forbid, to meet our own errors."""
    checked = "chapbook_checks" in sys.modules
    if not checked or request.node.get_closest_marker("wrong_types") is None:
        yield
        return
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True, scope="module")
def _programs_of_one_file() -> Iterator[None]:
    """Drops what a file has compiled: a process may hold so many pieces of code, and no more.

    Linux limits them by `vm.max_map_count`, and memory does too.
    """
    yield
    if (jax := sys.modules.get("jax")) is not None:
        jax.clear_caches()


def _modules_with_shapes() -> list[str]:
    """Returns the modules whose signatures give shapes: every call in the tests is held to them."""
    folder = Path(__file__).parent
    return [
        ".".join(path.relative_to(folder).with_suffix("").parts[2:])
        for path in folder.glob("*/src/chapbook/*/**/*.py")
        if "from jaxtyping import" in path.read_text()
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="slow; pass --slow")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a test marked `devices(count)` in a child process that simulates that many devices.

    The number of devices is fixed once JAX has started, so all marked tests of a file with one
    count share one child, which runs when the first of them is due.
    """
    marker = pyfuncitem.get_closest_marker("devices")
    if marker is None or CHILD in os.environ:
        return None
    outcomes = _child_outcomes(pyfuncitem.session, pyfuncitem.path, marker.args[0])
    if problem := outcomes.get(pyfuncitem.name, "the child process did not report this test"):
        pytest.fail(problem, pytrace=False)
    return True


def _child_outcomes(session: pytest.Session, path: Path, count: int) -> dict[str, str]:
    """Returns the problem, or an empty string, by name of each marked test of a file."""
    cache = session.config.stash.setdefault(CHILDREN, {})
    if (path, count) not in cache:
        wanted = [
            item.nodeid
            for item in session.items
            if item.path == path
            and (marker := item.get_closest_marker("devices"))
            and marker.args[0] == count
        ]
        report = session.config.rootpath / ".pytest_cache" / f"devices-{os.getpid()}.xml"
        report.parent.mkdir(exist_ok=True)
        options = ["-q", f"--junitxml={report}", f"--rootdir={session.config.rootpath}"]
        if session.config.getoption("--slow"):
            options.append("--slow")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *wanted],
            env={**os.environ, CHILD: str(count)},
            cwd=session.config.rootpath,
            capture_output=True,
            text=True,
        )
        if done.returncode not in (0, 1) or not report.exists():
            crash = f"the child process ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
            cache[path, count] = {item.name: crash for item in session.items if item.path == path}
        else:
            cache[path, count] = {
                case.attrib["name"]: "\n".join(
                    f"{e.attrib.get('message', '')}\n{e.text or ''}"
                    for e in case
                    if e.tag in ("failure", "error")
                )
                for case in ElementTree.parse(report).iter("testcase")
            }
            report.unlink()
    return cache[path, count]
