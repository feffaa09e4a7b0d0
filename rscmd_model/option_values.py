"""What an option of a training takes, and how the word of a command line, or a value of Python, is read as that.

Each `read_...` gives the value, or raises ValueError for what it does not take.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"


@dataclass(frozen=True)
class Option:
    """One option of ultralytics.

    Attributes:
        about: what it does here; of a refused one, why it is refused.
        takes: its values, in words; "" for a refused option.
        read: from a word of the command line, or a value of Python, to the value; ValueError for what it does not take.
        harmless: a refused option may be set to its default, which asks for nothing.
    """

    about: str
    takes: str = ""
    read: Callable[[Any], Any] | None = None
    harmless: bool = True


def read_whole(value: Any, low: int, high: int) -> int:
    found = read_number(value, low, high)
    if not found.is_integer():
        raise ValueError
    return int(found)


def read_number(value: Any, low: float, high: float) -> float:
    if isinstance(value, str) and len(value) < 40 and re.fullmatch(_NUMBER, value.strip(), re.ASCII):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError
    return float(value)


def read_switch(value: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.strip().lower() not in words:
        raise ValueError
    return words[value.strip().lower()]


def read_items(value: Any) -> list[Any]:
    """The items of a list, in brackets or not."""
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"\[.*\]|\(.*\)", text, re.DOTALL):
            text = text[1:-1]
        value = [item.strip().strip("'\"") for item in text.split(",")]
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= 1000:
        raise ValueError
    return list(value)


def read_text(value: Any) -> str:
    """A name or path, letter for letter."""
    if isinstance(value, Path) or (isinstance(value, Integral) and not isinstance(value, bool)):
        value = str(value)
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 4000:
        raise ValueError
    if max(len(part.encode()) for part in value.split("/")) > 255:
        raise ValueError
    return value


def read_fraction(value: Any) -> Any:
    if isinstance(value, (list, tuple)) or "," in str(value):
        items = read_items(value)
        if len(items) != 2:
            raise ValueError
        return [read_fraction(item) for item in items]
    share = read_number(value, 0, 10**9)
    if share == 0 or (share > 1 and not share.is_integer()):
        raise ValueError
    return int(share) if share > 1 else share


def read_scale(value: Any) -> Any:
    if isinstance(value, (list, tuple)) or "," in str(value):
        low, high = (read_number(item, 0.01, 100) for item in read_items(value))
        if low > high:
            raise ValueError
        return [low, high]
    return read_number(value, 0, 1)


def read_classes(value: Any) -> list[int]:
    return [
        read_whole(item, 0, 100_000) for item in (read_items(value) if not isinstance(value, Integral) else [value])
    ]


def read_freeze(value: Any) -> Any:
    """A number of layers or a list of layers and names, as far as any family has layers."""
    try:
        return read_whole(value, 0, 24)
    except ValueError:
        pass
    items: list[int | str] = []
    for item in read_items(value):
        try:
            items.append(read_whole(item, 0, 23))
        except ValueError:
            if not re.fullmatch(r"([a-z]\w*|\d{1,2})(\.\w+)*", str(item), re.ASCII) or str(item).isdigit():
                raise
            items.append(str(item))
    return items


def read_either(value: Any, *others: str) -> bool | str:
    """A switch, or one of some words."""
    if isinstance(value, str) and value.strip().lower() in others:
        return value.strip().lower()
    return read_switch(value)


def read_choice(value: Any, *choices: str) -> str:
    found = {choice.lower(): choice for choice in choices}
    if not isinstance(value, str) or value.strip().lower() not in found:
        raise ValueError
    return found[value.strip().lower()]


def read_resume(value: Any) -> Any:
    if value is False or (isinstance(value, str) and value.strip().lower() in ("false", "no", "off")):
        return False
    if not isinstance(value, (str, Path)) or value in ("True", "true", "yes", "on"):
        raise ValueError
    return read_text(value)


def whole(about: str, low: int = 0, high: int = 1_000_000) -> Option:
    return Option(about, f"a whole number from {low} to {high}", lambda value: read_whole(value, low, high))


def number(about: str, high: float = 1.0, low: float = 0.0) -> Option:
    return Option(about, f"a number from {low:g} to {high:g}", lambda value: read_number(value, low, high))


def switch(about: str) -> Option:
    return Option(about, "True or False", read_switch)


def one_of(about: str, *choices: str) -> Option:
    return Option(about, f"one of {', '.join(choices)}", lambda value: read_choice(value, *choices))


def text(about: str, takes: str) -> Option:
    return Option(about, f"{takes}, letter for letter", read_text)
