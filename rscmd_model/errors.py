"""How a user's mistake is told: one line, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something the user can put right. Its message is the whole story: what was wrong and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says that is not blank; its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def one_line(error: BaseException) -> str:
    """What an exception says, on one line; with its kind, unless it is a user's mistake, which says everything."""
    return first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"


def run_cli(main: Callable[[], int | None]) -> NoReturn:
    """Run an entry point and exit with its own code, 0 by default, unless NumPy or the like is too old for it.

    A `UserError`, or a file that the system would not read or write (a full disk, a missing permission), is one line
    on stderr and exit code 2; Ctrl-C is 130.
    """
    from rscmd_model.versions import EVERYWHERE, require

    try:
        require(*EVERYWHERE)
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away, as in `... | head`
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}", file=sys.stderr)
        sys.exit(2)
