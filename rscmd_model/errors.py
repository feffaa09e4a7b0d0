"""How a user's mistake is told: one line, no traceback; and how a program that is told to end does so."""

from __future__ import annotations

import difflib
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

_SHOWN = 80
_LONGEST_LINE = 2000


class UserError(Exception):
    """Something the user can put right. Its message is the whole story: what was wrong and what to do."""


def shown(text: object, most: int = _SHOWN) -> str:
    """Make a name or value from elsewhere (a message, a file, a request) fit to stand within a line of ours.

    What is not printable (line breaks, escapes, marks that turn the direction of writing) is written as in Python's
    repr.

    Args:
        text: what to show.
        most: characters to show; of a longer text only the start is shown, with the length.
    """
    text = str(text)
    start = _escaped(text[:most])
    return start if len(text) <= most and len(start) <= 2 * most else f"{start[:most]}... ({len(text)} characters)"


def quoted(value: object, most: int = _SHOWN) -> str:
    """A value as Python writes it, on one line.

    Args:
        value: what to show.
        most: characters to show; the rest is cut off.
    """
    text = repr(value[: 2 * most] if isinstance(value, str) else value)
    return text if len(text) <= most else f"{text[:most]}..."


def as_line(text: str, most: int = _LONGEST_LINE) -> str:
    """A whole message as one printable line.

    Args:
        text: the message; it is escaped as by `shown`.
        most: characters to show; of a longer message the middle is left out.
    """
    if len(text) > most:
        text = f"{text[: most // 2]} ... ({len(text)} characters) ... {text[-(most // 2) :]}"
    return _escaped(text)


def several(names: Iterable[object], most: int = 8) -> str:
    """Names from elsewhere in a row, quoted.

    Args:
        names: what to show.
        most: how many to show; of the others the number is told.
    """
    names = list(names)
    row = ", ".join(f"'{shown(name)}'" for name in names[:most])
    return f"{row} and {len(names) - most} more" if len(names) > most else row


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a message about an unknown name: which known one is nearest.

    Args:
        name: what was given; only its first 60 characters are compared, so that a long one costs no time.
        known: the names there are.
        otherwise: what to say where none of them is near.

    Returns:
        "; did you mean NAME?", or "; " and `otherwise`, or an empty text.
    """
    near = difflib.get_close_matches(str(name)[:60], list(known), 1)
    hint = f"did you mean {near[0]}?" if near else otherwise
    return f"; {hint}" if hint else ""


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def first_line(error: BaseException) -> str:
    """The first line of what an exception says that is not blank; its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def one_line(error: BaseException) -> str:
    """What an exception says, on one line; with its kind, unless it is a user's mistake, which says everything."""
    return first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"


def out_of_memory(error: BaseException) -> bool:
    """Whether this is Python's, torch's or another runtime's word for no memory left, of the processor or of a GPU."""
    kinds = ("OutOfMemoryError", "MemoryError", "_ArrayMemoryError")
    said = ("out of memory", "can't allocate memory", "Failed to allocate memory")
    return type(error).__name__ in kinds or any(words in str(error) for words in said)


def origin(error: BaseException) -> str:
    """Where in the code an exception comes from, as "file:line": the same for all of one kind, whatever they say."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else type(error).__name__


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the program as Ctrl-C does, by a KeyboardInterrupt.

    So what was started is ended, and what was half written is removed. A signal that is ignored, as by nohup, stays
    ignored. A closing terminal or a service manager sends several signals. Only the first one counts, so that the
    others do not break off the tidying up.

    Raises:
        KeyboardInterrupt: in the block, when a signal arrives.
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
    """A handler that does nothing. Unlike SIG_IGN it is not passed on to children."""


def run_cli(main: Callable[[], int | None]) -> NoReturn:
    """Run an entry point and exit with its own code, 0 by default, unless NumPy or the like is too old for it.

    A `UserError`, or a file that the system would not read or write (a full disk, a missing permission), is one line
    on stderr and exit code 2; Ctrl-C, SIGTERM and SIGHUP are 130.
    """
    from rscmd_model.versions import EVERYWHERE, require

    try:
        require(*EVERYWHERE)
        with ended_by_signals():
            code = main() or 0
        sys.exit(code)
    except UserError as error:
        print(f"error: {as_line(str(error))}", file=sys.stderr)
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
