"""The engine of evidence: which source belongs to which target, and what that rests on. Knows names, graphs and shapes.

outcomes = match(Case(sources, targets, optimizers, decisions, owned, open))  # target name -> Match or Conflict
"""

from dist_restore.planning.matching.engine import Case, match
from dist_restore.planning.matching.outcome import Conflict, Match, Outcome

__all__ = ["Case", "Conflict", "Match", "Outcome", "match"]
