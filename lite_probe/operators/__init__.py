"""Curvature as symmetric operators: Hessian, Gauss–Newton, finite differences, known matrices."""
