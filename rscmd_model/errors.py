"""How a user's mistake is told: one line, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something the user can put right. Its message is the whole story: what was wrong and what to do."""


def run_cli(main: Callable[[], int | None]) -> NoReturn:
    """Run an entry point and exit: 0 or its own code, 2 with one line on stderr for a `UserError`, 130 on Ctrl-C."""
    try:
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
