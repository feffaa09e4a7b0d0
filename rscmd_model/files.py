"""Files are written whole or not at all: aside first, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rscmd_model.errors import UserError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; on success it is renamed to `path`, on failure removed.

    The folder is made if need be.

    Raises:
        UserError: the file cannot be written (permission, full disk, a folder in the way).
    """
    path = Path(path)
    # The suffix stays last, because some writers choose the format by it.
    aside = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        os.replace(aside, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if aside.parent.is_dir():
            aside.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON. Raises `UserError` when the file cannot be written."""
    with whole_file(path) as aside:
        aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
