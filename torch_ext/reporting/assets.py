"""Files that pages are made of: they hold all they show and load nothing."""

import base64
import hashlib
import importlib.resources


def asset(name: str) -> str:
    """Return the text of a file of this package."""
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def policy_hash(text: str) -> str:
    """Return what a page's policy calls a style or a script: nothing else may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
