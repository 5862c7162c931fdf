"""Flat vectors of N entries: how parameters lie in them, sums in float64, random ones, the Krylov basis."""
