"""`python -m chapbook.core doctor`: prints what the package sees on this machine."""

import platform
from importlib import metadata, util

import typer

from chapbook.core import cli, datasets

app = cli.app("chapbook-core", __doc__ or "", metadata.version("chapbook-core"))


@app.command()
def doctor() -> None:
    """Prints the versions, the devices if JAX is there, and the folder of cached data."""
    typer.echo(f"python {platform.python_version()} on {platform.platform()}")
    for name in ("chapbook-core", "typer", "rich", "polars", "numpy"):
        typer.echo(f"{name} {metadata.version(name)}")
    if util.find_spec("jax"):
        import jax

        typer.echo(f"jax {jax.__version__}: {', '.join(map(str, jax.devices()))}")
    else:
        typer.echo("jax is not installed; pip install 'chapbook-core[jax]' brings it")
    typer.echo(f"data folder {datasets.folder()}")


main = cli.main(app)

if __name__ == "__main__":
    main()
