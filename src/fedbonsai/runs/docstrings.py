"""What the settings of a class say of themselves: the string literal under each field."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from itertools import pairwise
from typing import Any, cast

from fedbonsai.choice import Choice


@cache
def docstrings(cls: type[Any]) -> Mapping[str, str]:
    """The string literal under each field, which is its documentation; fields that a base names have that of the base."""
    bases = [base for base in reversed(cls.__bases__) if is_dataclass(base) or issubclass(base, Choice)]
    texts = {name: text for base in bases for name, text in docstrings(base).items()}
    body = cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]).body
    for field, text in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            texts[field.target.id] = " ".join(str(text.value.value).split())
    return texts
