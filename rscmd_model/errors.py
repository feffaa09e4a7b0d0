"""How a user's mistake is told: one line, no traceback; and how a program that is told to end does so."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class UserError(Exception):
    """Something the user can put right. Its message is the whole story: what was wrong and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says that is not blank; its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def bounded(text: str, most: int = 300) -> str:
    """Text of a stranger on one line: what a terminal would act on is escaped, what passes `most` characters is cut."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:most])
    return line if len(text) <= most else f"{line}..."


def one_line(error: BaseException) -> str:
    """What an exception says, on one line; with its kind, unless it is a user's mistake, which says everything."""
    return first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"


def quoted(value: object, most: int = 60) -> str:
    """What a user wrote, for a message: quoted, on one line and not without end."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within it, SIGTERM and SIGHUP end the program as Ctrl-C does: a KeyboardInterrupt, so that what was started is
    ended and what was half written is removed.

    A signal that is ignored, as by nohup, stays ignored. After the first of them or Ctrl-C, SIGTERM and SIGHUP are
    let be: a closing terminal or a service manager sends several, and they must not break off the tidying up.
    """
    usual: dict[signal.Signals, Any] = {
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }
    taken = [number for number, handler in usual.items() if signal.getsignal(number) == handler]
    if threading.current_thread() is not threading.main_thread():
        taken = []  # where Python lets no handler be set

    def end(number: int, frame: Any) -> None:
        for other in taken:
            if other != signal.SIGINT and signal.getsignal(other) is end:
                signal.signal(other, _let_be)
        raise KeyboardInterrupt

    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            if signal.getsignal(number) in (end, _let_be):
                signal.signal(number, usual[number])


def _let_be(number: int, frame: Any) -> None:
    """A handler that does nothing: unlike SIG_IGN, it is not passed on to children."""


def run_cli(main: Callable[[], int | None]) -> NoReturn:
    """Run an entry point and exit with its own code, 0 by default.

    A `UserError`, or a file that the system would not read or write (a full disk, a missing permission), is one line
    on stderr and exit code 2; Ctrl-C, SIGTERM and SIGHUP are 130.
    """
    try:
        with ended_by_signals():
            code = main() or 0
        sys.exit(code)
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
