"""Models that people have, built small from their configurations, with the pairs that are right.

Nothing is downloaded. What feeds what is written down by hand from each architecture's definition,
in the terms of `truth`, and `judge` holds a monitor's pairs against it, entry by entry.
"""
