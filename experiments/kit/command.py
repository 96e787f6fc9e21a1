"""What every experiment's command does with errors and interruptions."""

from __future__ import annotations

import sys
from collections.abc import Callable


def exit_status(name: str, work: Callable[[], object]) -> int:
    """Do the work; 0, or 1 for settings that cannot be run, or 130 when interrupted."""
    try:
        work()
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0
