"""What is shipped: the stub of the compiled core, and the source distribution."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chapbook.fast_wordpiece import _core

PACKAGE = Path(__file__).parents[1]
# A checkout has the package among others; what was unpacked from its own distribution has not.
CORE = PACKAGE.parent / "core"
Parameters = list[tuple[str, Any]]


def parameters(function: ast.FunctionDef) -> Parameters:
    """The name and the default of each parameter; `...` where there is no default."""
    arguments = function.args
    plain = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(plain) - len(arguments.defaults)) + arguments.defaults
    named = [*zip(plain, defaults, strict=True)]
    named += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return [
        (argument.arg, ... if default is None else ast.literal_eval(default))
        for argument, default in named
    ]


def stubbed(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Parameters | None]]:
    """What a stub says is there, and the parameters of what can be called."""
    for node in body:
        match node:
            case ast.ClassDef(name=name):
                yield prefix + name, None
                yield from stubbed(node.body, f"{name}.")
            case ast.FunctionDef(name=name) if node.decorator_list:
                yield prefix + name, None
            case ast.FunctionDef(name=name):
                yield prefix + name, parameters(node)
            case ast.AnnAssign(target=ast.Name(id=name)) if not name.startswith("_"):
                yield prefix + name, None


def signature(function: Any) -> Parameters:
    """The parameters of a compiled function, as nanobind wrote them down."""
    ((text, _, defaults),) = function.__nb_signature__
    # nanobind writes the number of a default in its place.
    text = re.sub(r"\\(\d+)", r"\1", text)
    (node,) = ast.parse(f"{text}: ...").body
    assert isinstance(node, ast.FunctionDef)
    return [
        (name, number if number is ... else defaults[number]) for name, number in parameters(node)
    ]


def compiled(owner: Any, prefix: str = "") -> Iterator[tuple[str, Parameters | None]]:
    """What a compiled module or class has."""
    for name, value in vars(owner).items():
        if hasattr(value, "__nb_signature__"):
            yield prefix + name, signature(value)
        elif name.startswith("_"):
            continue
        else:
            yield prefix + name, None
            if isinstance(value, type):
                yield from compiled(value, f"{name}.")


def test_the_stub_says_what_the_extension_has():
    text = (PACKAGE / "src/chapbook/fast_wordpiece/_core.pyi").read_text()
    assert dict(stubbed(ast.parse(text).body)) == dict(compiled(_core))


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
@pytest.mark.parametrize("compiler", ["/nonexistent", "too old"])
def test_a_missing_compiler_is_named_and_how_to_get_one(compiler, tmp_path):
    if compiler == "too old":
        if shutil.which("g++") is None:
            pytest.skip("needs g++")
        compiler = str(tmp_path / "g++")
        Path(compiler).write_text('#!/bin/sh\nexec g++ "$@" -std=c++17\n')
        Path(compiler).chmod(0o755)
    command = ["cmake", "-S", str(PACKAGE), "-B", str(tmp_path / "build")]
    environment = {**os.environ, "CXX": compiler}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    told = " ".join(done.stderr.split())
    assert "There is no C++ compiler" in told or "is too old" in told
    assert "This needs a compiler for C++20: g++ 12, clang 15" in told
    assert "apt install g++" in told


@pytest.mark.slow
@pytest.mark.skipif(not CORE.exists(), reason="needs chapbook-core's folder beside the package's")
def test_the_source_distribution_is_built_without_git_and_works_in_a_clean_environment(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
    venv.create(tmp_path / "venv", with_pip=True)
    scripts = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    # No git, and none of the packages that run this test.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
    }
    environment["PATH"] = path_without_git(tmp_path)

    def run(*command: str) -> str:
        done = subprocess.run(
            [str(scripts / "python"), *command],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    needs = tomllib.loads((copy / "pyproject.toml").read_text())["build-system"]["requires"]
    run("-m", "pip", "install", "--quiet", *needs)
    run("-c", "import scikit_build_core.build as b; b.build_sdist('../dist')")
    (sdist,) = (tmp_path / "dist").iterdir()
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    kept = (path for path in PACKAGE.glob("src/**/*") if path.is_file())
    sources = {str(path.relative_to(PACKAGE)) for path in kept if "__pycache__" not in path.parts}
    assert sources | {"CMakeLists.txt", "LICENSE", "README.md", "tests/conftest.py"} <= held
    assert not [name for name in held if re.search(r"\.(so|pyd|pyc)$|^build/|^dist/", name)]

    run("-m", "pip", "uninstall", "--quiet", "--yes", "scikit-build-core", "nanobind", "numpy")
    run("-m", "pip", "install", "--quiet", str(CORE), str(sdist))
    code = """
import pathlib, sys
from chapbook.fast_wordpiece import Tokenizer, __file__
assert pathlib.Path(__file__).is_relative_to(sys.prefix), __file__
tok = Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able"])
print(tok.encode("unaffable").tokens)
"""
    assert run("-c", code).strip() == "['[CLS]', 'un', '##aff', '##able', '[SEP]']"
    done = subprocess.run([scripts / "fast-wordpiece", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def path_without_git(folder: Path) -> str:
    """A PATH like this one, in which `git` is nowhere."""
    parts = []
    for number, part in enumerate(os.environ["PATH"].split(os.pathsep)):
        if shutil.which("git", path=part):
            mirror = folder / f"bin{number}"
            mirror.mkdir()
            for tool in Path(part).iterdir():
                if not tool.name.startswith("git"):
                    (mirror / tool.name).symlink_to(tool)
            part = str(mirror)
        parts.append(part)
    return os.pathsep.join(parts)
