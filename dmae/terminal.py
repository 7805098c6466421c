"""What is printed for people and programs: names and queries are shown as they are, and never act."""

import json
import sys


def printable(text: object) -> str:
    """`text` on one line, with what a terminal would act on (line ends, escape sequences, invalid bytes) written out.

    >>> printable("one\\ntwo [red] caf\\udce9")
    'one\\\\ntwo [red] caf\\\\xe9'
    """
    return "".join(character if character.isprintable() else _written_out(character) for character in str(text))


def _written_out(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python holds a byte of a file name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def one_line(text: object) -> str:
    """`text` for a program that reads lines: what would break one is written out, bytes of a name stay as they are."""
    return "".join(
        character if character.isprintable() or "\udc80" <= character <= "\udcff" else _written_out(character)
        for character in str(text)
    )


def json_line(value: object) -> str:
    """One line of JSON, in UTF-8 where that can say it; names that are not valid Unicode are escaped."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on stdout. Brackets, colons and the like in cells are text: rich would take them for markup."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=printable(title), title_justify="left")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    Console(markup=False, emoji=False, file=sys.stdout).print(table)
