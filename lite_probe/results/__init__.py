"""Frozen records of what was measured, and how they rest on disk. No torch here."""
