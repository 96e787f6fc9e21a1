"""Packed copies of many matrices with their statistics."""
