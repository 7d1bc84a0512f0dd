r"""Writes the rule file that leads back: from the new names to the old ones.

    python scripts/invert_rules.py --rules=configs/rules/lm_v1_to_v2.toml --to=lm_v2_to_v1.toml

Knows rules and no shapes: reshape, for one, cannot be inverted here; `convert_checkpoint.py --invert_rules` can.
Exit code 0: done. 2: a flag or the rules are bad, or a rule has no inverse; the message has its number and why.
"""

from __future__ import annotations

import sys

from absl import app, flags

import dist_restore as dr
from target_function import flags_parser

_RULES = flags.DEFINE_string("rules", None, "TOML file with the rules (see configs/rules).", required=True)
_TO = flags.DEFINE_string("to", None, "File to write, which must not exist; the standard output unless told.")


def main(argv: list[str]) -> int:
    del argv
    try:
        text = dr.RuleSet.load(_RULES.value).inverse().to_toml()
        if not _TO.value:
            print(text, end="")
            return 0
        with open(_TO.value, "x", encoding="utf-8") as file:
            file.write(text)
    except (dr.RestoreError, OSError) as error:
        print(f"invert_rules: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=flags_parser("invert_rules"))
