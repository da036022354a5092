"""Public names that are loaded from their module on first access (PEP 562), so that importing a package stays cheap."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def attach(namespace: dict[str, Any], home: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make a module's ``__getattr__`` and ``__dir__``.

    Args:
        namespace: ``globals()`` of the module; what was loaded is kept there.
        home: Module of each public name.

    Returns:
        The two functions.

    Example:
        >>> get, names = attach({"__name__": "example"}, {"sqrt": "math"})
        >>> get("sqrt")(4.0)
        2.0
        >>> get("cube")
        Traceback (most recent call last):
            ...
        AttributeError: module 'example' has no attribute 'cube'; it has sqrt
    """

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(
                f"module {namespace['__name__']!r} has no attribute {name!r}; it has {', '.join(home)}"
            )
        value = getattr(import_module(home[name]), name)
        namespace[name] = value
        return value

    def names() -> list[str]:
        return sorted({*namespace, *home})

    return get, names
