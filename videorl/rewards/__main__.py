"""`python -m videorl.rewards list`: the built-in reward terms."""

import argparse

from videorl.rewards.registry import TERMS


def table() -> str:
    """One line per term: name, range, the row fields it reads, the source of its formula."""
    rows = [("name", "range", "row fields", "source")]
    rows += [(name, f"[{t.low:g}, {t.high:g}]", ", ".join(t.fields) or "-", t.source) for name, t in TERMS.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m videorl.rewards", description=__doc__)
    parser.add_subparsers(required=True, metavar="command").add_parser("list", help="print the built-in reward terms")
    parser.parse_args(argv)
    print(table())


if __name__ == "__main__":
    main()
