"""What an optional part of the installation brings, asked for before any work is done."""

import re
from importlib.metadata import PackageNotFoundError, requires, version


def require(*extras: str) -> None:
    """ImportError that names every package of these extras that is not installed, and the command that brings them.

    The list is the installed package's own (`extras_require` in setup.py).
    """
    absent = sorted({name for extra in extras for name in packages(extra) if not installed(name)})
    if absent:
        raise ImportError(f"this needs {', '.join(absent)}; install them: pip install 'dmae[{','.join(extras)}]'")


def packages(extra: str) -> list[str]:
    """Names of the packages that an extra asks for; empty where dmae itself runs without having been installed."""
    try:
        listed = requires("dmae") or []
    except PackageNotFoundError:
        return []
    wanted = [line for line in listed if re.search(rf"extra == ['\"]{re.escape(extra)}['\"]", line)]
    return [re.split(r"[^\w.-]", line)[0] for line in wanted]


def installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
