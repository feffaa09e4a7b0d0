"""Text that people write, such as labels, lists, YAML, JSON and XML: read whole and plain, or refused in one line.

Files come from editors and tools of every kind. A byte order mark is passed over; UTF-16 (which Windows editors call
Unicode) is refused. So is what would take a reader's memory, time or stack: files beyond a limit, YAML whose aliases
unfold without end, XML with entities, nesting without end.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import yaml

from rscmd_model.errors import UserError, first_line, quoted

_MOST = 1 << 26  # bytes of a file that people write by hand; the labels of 100 pictures have some kB
_MOST_OF_A_SET = 1 << 30  # bytes of a file with the labels of a whole set
_MOST_OF_YAML = 1 << 20  # PyYAML reads some 200 kB in a second
_MOST_NODES = 100_000  # of a YAML file of that size, aliases unfolded
_DEEPEST = 100  # levels of a YAML file
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: str | Path, most: int = _MOST, what: str = "") -> str:
    """The text of a UTF-8 file, without the byte order mark that some editors put before it.

    Args:
        path: the file.
        most: bytes that it may have.
        what: it is, for the message that it cannot be read.

    Raises:
        UserError: naming the file: missing, unreadable, too large, UTF-16 or no UTF-8 at all.
    """
    return _decoded(_read(path, most, f"{what} " if what else ""), path)


def parse_yaml(
    text: str, where: str, *, words: bool = False, typed: Collection[str] = (), most: int = _MOST_OF_YAML
) -> Any:
    """The value of a YAML text.

    Args:
        text: what was written.
        where: names it in messages.
        words: take every scalar as the text that was written (null, or none at all, stays None). Without it YAML makes
            a number of 007, a date of 2026-11-26 and true of on.
        typed: keys of the outermost mapping below which that does not hold.
        most: characters that it may have; as many more values are taken with it.

    Raises:
        UserError: no YAML, a key twice in one mapping, a value that cannot be, or aliases and nesting without end.
    """
    if len(text) > most:
        raise UserError(f"{where} is not read: it has more than {most >> 20} MiB of YAML")
    values = _MOST_NODES * most // _MOST_OF_YAML
    try:
        loader = _Words(text, values) if words else _Plain(text, values)
        node = loader.get_single_node()
        if node is None:
            return None
        _walk(node, values)
        value = loader.construct_document(node)
        if typed and isinstance(value, dict):
            plain = _Plain(text, values)
            again = plain.get_single_node()
            for key, part in again.value if again is not None else ():
                if key.value in typed:
                    value[key.value] = plain.construct_document(part)
        return value
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        said = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{where} is not YAML: {line}{said[:120]}") from None
    except RecursionError:
        raise UserError(f"{where} is not read: it is nested too deep") from None
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:  # as for the date 2026-13-45
        raise UserError(f"{where} is not YAML that can be read: {first_line(error)[:120]}") from None


def read_yaml(path: str | Path, what: str = "", *, words: bool = False) -> Any:
    """The value of a YAML file.

    Args:
        path: the file.
        what: it is, for messages.
        words: as for `parse_yaml`.

    Raises:
        UserError: as `read_text` and `parse_yaml`.
    """
    return parse_yaml(read_text(path, what=what), f"{what} {path}".lstrip(), words=words)


def read_json(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises:
        UserError: as `read_text`, or the text is no JSON; the message names the file.
    """
    try:
        return json.loads(read_text(path, _MOST_OF_A_SET))
    except RecursionError:
        raise UserError(f"{path} is no readable JSON: it is nested too deep") from None
    except ValueError as error:
        raise UserError(f"{path} is no readable JSON: {first_line(error)[:120]}") from None


def read_xml(path: str | Path) -> ElementTree.Element:
    """The root of an XML file, in any encoding that it declares but UTF-16.

    Raises:
        UserError: naming the file as `read_text`, no XML, or one with a document type, which is where entities that
            unfold without end are declared.
    """
    content = _read(path, _MOST_OF_A_SET)
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refusal(f"{path} is not read: a label file declares no document type (DOCTYPE)")
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError, AssertionError) as error:
        raise UserError(f"{path} is no readable XML: {first_line(error)}") from None


def _refusal(text: str) -> Callable[..., None]:
    def refuse(*_: Any) -> None:
        raise UserError(text)

    return refuse


def _read(path: str | Path, most: int, what: str = "") -> bytes:
    try:
        with Path(path).open("rb") as file:
            content = bytearray()  # in pieces: a read of so many bytes would hold as many at once
            while len(content) <= most and (piece := file.read(1 << 20)):
                content += piece
    except OSError as error:
        raise UserError(f"cannot read {what}{path}: {error.strerror}") from None
    except ValueError:  # a zero byte in the name
        raise UserError(f"cannot read {str(path)!r}: no file has such a name") from None
    if len(content) > most:
        raise UserError(f"{path} is not read: it has more than {most >> 20} MiB")
    if content.startswith(_UTF16):
        raise UserError(f"{path} is UTF-16 text: save it as UTF-8")
    return bytes(content)


def _decoded(content: bytes, path: str | Path) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (at byte {error.start}): save it as UTF-8") from None
    if "\0" in text[:1000]:  # UTF-16 without its mark, or no text at all
        raise UserError(f"{path} is no text: it has zero bytes, as UTF-16 has; save it as UTF-8")
    return text


_KEPT = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


class _Plain(yaml.SafeLoader):
    """PyYAML's own, which ends where it would nest too deep."""

    def __init__(self, text: str, most: int) -> None:
        super().__init__(text)
        self.depth = self.count = 0
        self.most = most

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        self.count += 1
        if self.depth > _DEEPEST:
            raise RecursionError
        if self.count > self.most:
            raise ValueError(_too_many(self.most))
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Words(_Plain):
    """Scalars as they were written; no value, and null, stay None."""


_Words.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _KEPT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _too_many(values: int) -> str:
    return f"it has more than {values} values, or its aliases unfold to as many"


def _walk(root: yaml.Node, most: int) -> None:
    """Refuse what would unfold without end, and mappings with a key twice, of which YAML silently keeps the last."""
    left = most
    pending = [root]
    while pending:
        node = pending.pop()
        left -= 1
        if left < 0:
            raise ValueError(_too_many(most))
        if isinstance(node, yaml.MappingNode):
            keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            twice, count = keys.most_common(1)[0] if keys else ("", 0)
            if count > 1:
                raise ValueError(f"line {node.start_mark.line + 1}: the key {quoted(twice)} stands there twice")
            pending += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            pending += node.value


def utf_8(name: str) -> bytes:
    """A file's name in UTF-8, the same under every locale; one that is no UTF-8 gives its own bytes.

    Raises:
        UnicodeEncodeError: the text has half a surrogate pair, which no file's name has.
    """
    return name.encode(errors="surrogateescape")


def is_path(text: str) -> bool:
    """Whether a file system can have a path of this name: without a zero byte or half a surrogate pair (an escape of
    YAML can be one), with parts of up to 255 bytes and 3000 in all."""
    try:
        content = utf_8(text)
    except UnicodeEncodeError:
        return False
    return b"\0" not in content and len(content) <= 3000 and all(len(part) <= 255 for part in content.split(b"/"))
