"""Prepared operations, recorded once and replayed."""
