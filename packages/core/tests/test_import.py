import ast
import importlib.util
import json
import signal
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import pytest

import chapbook.core
from chapbook.core.__main__ import main
from chapbook.core.errors import MissingExtra

HEAVY = {"jax", "jaxlib", "equinox", "optax", "orbax", "tensorstore", "safetensors", "matplotlib"}
SOURCE = Path(chapbook.core.__file__)


def modules_after(code: str) -> set[str]:
    script = f"import json, sys\n{textwrap.dedent(code)}\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_light_modules_and_help_leave_jax_alone_and_the_package_itself_loads_nothing():
    loaded = modules_after("""
        import chapbook.core
        alone = set(sys.modules)
        import chapbook.core.cli, chapbook.core.io, chapbook.core.run, chapbook.core.tables
        import chapbook.core.datasets, chapbook.core.config
        app = chapbook.core.cli.app("toy", "A toy.", version="1")
        @app.command()
        def train(data: chapbook.core.cli.TableIn): ...
        try:
            chapbook.core.cli.main(app)(["train", "--help"])
        except SystemExit as end:
            assert end.code == 0
        assert not alone & {"polars", "numpy", "typer", "rich"}
    """)
    assert "chapbook.core.run" in loaded
    assert not loaded & HEAVY


def test_every_public_name_has_a_home_and_is_seen_by_type_checkers():
    (block,) = [
        node
        for node in ast.parse(SOURCE.read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    typed = {a.name for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names}
    always = {"Error", "MissingExtra", "TableError"}
    lazy = set(chapbook.core._HOME) | set(chapbook.core._MODULES)
    assert typed | always == set(chapbook.core.__all__) == lazy | always
    assert set(chapbook.core.__all__) <= set(dir(chapbook.core))


def test_public_names_come_on_first_use():
    for name, home in chapbook.core._HOME.items():
        if home in ("config", "io", "run", "tables"):
            assert getattr(chapbook.core, name) is getattr(chapbook.core, name)
        else:  # without the seconds that importing JAX takes
            tree = ast.parse(SOURCE.with_name(f"{home}.py").read_text())
            imported = {a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
            assigned = {ast.unparse(n.targets[0]) for n in tree.body if isinstance(n, ast.Assign)}
            typed = {ast.unparse(n.target) for n in tree.body if isinstance(n, ast.AnnAssign)}
            made = {getattr(node, "name", None) for node in tree.body}
            assert name in imported | assigned | typed | made
    with pytest.raises(AttributeError, match=r"has no attribute .nothing."):
        _ = chapbook.core.nothing


def test_a_missing_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.delitem(sys.modules, "chapbook.core.meshes", raising=False)
    monkeypatch.delattr(chapbook.core, "meshes", raising=False)
    monkeypatch.delitem(vars(chapbook.core), "mesh", raising=False)
    expected = "chapbook.core.mesh needs JAX; install it with: pip install 'chapbook-core[jax]'"
    with pytest.raises(MissingExtra) as raised:
        _ = chapbook.core.mesh
    assert raised.value.message == expected
    assert isinstance(raised.value, ImportError)


def test_the_doctor_tells_what_it_sees(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    signal.signal(signal.SIGTERM, before)
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert f"chapbook-core {chapbook.core.__version__}\n" in out
    assert "data folder" in out
    if importlib.util.find_spec("jax"):
        assert f"jax {metadata.version('jax')}: " in out
    else:
        assert "jax is not installed" in out
