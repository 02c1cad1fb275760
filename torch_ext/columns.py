"""Names and values in two columns, for terminals."""

Rows = list[tuple[str, str]]


def two_columns(rows: Rows) -> str:
    """The values below each other; a line per row."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)
