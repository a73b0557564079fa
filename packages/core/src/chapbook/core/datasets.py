"""Real data out of published packages, checked and cached."""

import os
from pathlib import Path

import platformdirs


def folder() -> Path:
    """Returns the folder of cached data: `CHAPBOOK_DATA`, else the user's cache folder."""
    return Path(os.environ.get("CHAPBOOK_DATA") or platformdirs.user_cache_path("chapbook"))
