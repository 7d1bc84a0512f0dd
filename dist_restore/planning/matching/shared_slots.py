"""Slots whose owner is one of several variables of one name, as Sonnet's are where layers share a name.

They are known by their place in a list, beside the names of all that they may belong to (`naming`): that is order, and
says nothing any more where a rule moves one of these. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from dist_restore.planning.entries import Proof
from dist_restore.planning.matching.outcome import Conflict, Match, Outcome

_ONE_OF_SEVERAL = re.compile(r"@[0-9a-f]{12}\Z")


def judge_shared(
    found: Mapping[str, Outcome], full_names: Mapping[str, str], moved: Collection[str]
) -> Mapping[str, Outcome]:
    """Marks such slots as order, and refuses those that may belong to what a rule moves.

    Args:
      found: all outcomes.
      full_names: target -> what it calls itself.
      moved: targets that a rule fills from another variable than their own, or keeps.
    """
    shared = [(n, o) for n, o in found.items() if isinstance(o, Match) and "@" in o.name]
    shared = [(n, o) for n, o in shared if _ONE_OF_SEVERAL.search(o.name)]
    if not shared:
        return found
    called = {full_names[name] for name in moved if full_names.get(name)}
    result = dict(found)
    for name, match in shared:
        own = full_names.get(name, "")
        owner = next((text for text in sorted(called) if own.endswith(f"/{text}")), "")
        if owner:
            reason = (
                f"it belongs to one of several variables called {owner!r}, of which a rule moves one or keeps it: "
                "nothing says which is whose, so a rule must say it for these slots too"
            )
            result[name] = Conflict((match.source,), reason)
        else:
            result[name] = Match(match.source, match.evidence, Proof.ORDER, match.name)
    return result
