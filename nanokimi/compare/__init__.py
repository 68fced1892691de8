"""The comparison, its report and its verdict. The package itself can be called: `nanokimi.compare("text.txt")`.

The function that trains and this package have one name. Python puts the package in the function's place as soon as
anything in it is imported, so calling the package does what the function does (`from_python.compare`).
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        from nanokimi.compare.from_python import compare

        return compare(*arguments, **named)


sys.modules[__name__].__class__ = _Callable
