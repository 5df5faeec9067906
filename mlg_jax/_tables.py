"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def table_row(cells: Iterable[str]) -> str:
    """One row; a bar in a cell is escaped, so that it does not end the cell."""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def table_head(names: Sequence[str], align: str = "lr") -> str:
    """The two lines above the rows of a table.

    Args:
        names: column names.
        align: `l` or `r` for each column; the last letter also serves the columns after it.
    """
    rules = {"l": "---", "r": "--:"}
    rule = "|".join(rules[side] for side in _sides(align, len(names)))
    return f"{table_row(names)}\n|{rule}|".replace("|  |", "| |")  # the name may be empty


def table(names: Sequence[str], rows: Iterable[Sequence[str]], align: str = "lr") -> str:
    """A whole table, without a line break at its end; arguments as in `table_head`."""
    return "\n".join([table_head(names, align), *map(table_row, rows)])


def padded_table(names: Sequence[str], rows: Sequence[Sequence[str]], align: str = "lr") -> str:
    """A table whose columns are padded to equal widths, so that it is legible as plain text."""
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    sides = _sides(align, len(names))

    def line(cells: Sequence[str]) -> str:
        padded = zip(cells, widths, sides, strict=True)
        return table_row(f"{cell:{'<' if side == 'l' else '>'}{n}}" for cell, n, side in padded)

    rule = [
        "-" * n if side == "l" else "-" * (n - 1) + ":"
        for n, side in zip(widths, sides, strict=True)
    ]
    return "\n".join([line(names), line(rule), *map(line, rows)])


def _sides(align: str, num_columns: int) -> str:
    return align.ljust(num_columns, align[-1])[:num_columns]
