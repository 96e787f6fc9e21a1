"""``python -m tests.architectures [--write] [NAME ...]``: what a monitor finds, fault by fault."""

from __future__ import annotations

import argparse
import sys

from .every import ARCHITECTURES
from .table import Row, measure, write


def main() -> int:
    """Measure, print, and with ``--write`` renew the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; all by default")
    parser.add_argument("--write", action="store_true", help="renew docs/architectures.md")
    options = parser.parse_args()
    if options.write and options.names:
        parser.error("--write wants all architectures, not some")
    rows: list[Row] = []
    for one in ARCHITECTURES:
        if options.names and not any(n.lower() in one.name.lower() for n in options.names):
            continue
        if one.missing is not None:
            print(f"{one.name}: {one.missing}")
            continue
        row, traced, without = measure(one)
        rows.append(row)
        print(row.line)
        if options.names:
            print(f"traced:\n{traced.text}\nwithout inputs:\n{without.text}")
    if options.write:
        if len(rows) < len(ARCHITECTURES):
            print("not written: some architectures could not be built", file=sys.stderr)
            return 1
        write(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
