"""What an option of a training takes, and how a value is read: a word of the command line, or a value of Python.

Each `read_...` gives the value that was meant. It raises ValueError for what the option does not take.
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
    """A whole number from `low` to `high`."""
    found = read_number(value, low, high)
    if not found.is_integer():
        raise ValueError
    return int(found)


def read_number(value: Any, low: float, high: float) -> float:
    """A number from `low` to `high`."""
    if isinstance(value, str) and len(value) < 40 and re.fullmatch(_NUMBER, value.strip(), re.ASCII):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError
    return float(value)


def read_switch(value: Any) -> bool:
    """True or False, also as yes and no, on and off."""
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
    """A share above 0 and up to 1, or a whole number of pairs; or a list of two of them."""
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
    """A gain from 0 to 1, or a list of the lowest and the highest factor, 0.01 to 100."""
    if isinstance(value, (list, tuple)) or "," in str(value):
        low, high = (read_number(item, 0.01, 100) for item in read_items(value))
        if low > high:
            raise ValueError
        return [low, high]
    return read_number(value, 0, 1)


def read_classes(value: Any) -> list[int]:
    """Numbers of classes, one or a list."""
    return [
        read_whole(item, 0, 100_000) for item in (read_items(value) if not isinstance(value, Integral) else [value])
    ]


def read_freeze(value: Any) -> Any:
    """A number of layers, as far as any family has them, or a list of layers by number or by the name of a module."""
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
    """One of some words, in capital or small letters."""
    found = {choice.lower(): choice for choice in choices}
    if not isinstance(value, str) or value.strip().lower() not in found:
        raise ValueError
    return found[value.strip().lower()]


def read_resume(value: Any) -> Any:
    """The path of a checkpoint, or False."""
    if value is False or (isinstance(value, str) and value.strip().lower() in ("false", "no", "off")):
        return False
    if not isinstance(value, (str, Path)) or value in ("True", "true", "yes", "on"):
        raise ValueError
    return read_text(value)


def whole(about: str, low: int = 0, high: int = 1_000_000) -> Option:
    """An option that takes a whole number from `low` to `high`."""
    return Option(about, f"a whole number from {low} to {high}", lambda value: read_whole(value, low, high))


def number(about: str, high: float = 1.0, low: float = 0.0) -> Option:
    """An option that takes a number from `low` to `high`."""
    return Option(about, f"a number from {low:g} to {high:g}", lambda value: read_number(value, low, high))


def switch(about: str) -> Option:
    """An option that takes True or False."""
    return Option(about, "True or False", read_switch)


def one_of(about: str, *choices: str) -> Option:
    """An option that takes one of some words."""
    return Option(about, f"one of {', '.join(choices)}", lambda value: read_choice(value, *choices))


def text(about: str, takes: str) -> Option:
    """An option that takes text as it is written."""
    return Option(about, f"{takes}, letter for letter", read_text)
