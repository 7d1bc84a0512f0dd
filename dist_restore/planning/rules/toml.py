"""Rules as TOML text, which `RuleSet.from_toml` takes back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from dist_restore.core.errors import RuleError
from dist_restore.ops import Op, RemapRows, dump_op
from dist_restore.planning.rules.rule import Rule


def rules_to_toml(rules: Iterable[Rule], slots: Sequence[tuple[str, str]]) -> str:
    """The text of a rule file, `slots` as (role in the checkpoint, role in the program).

    Raises:
      RuleError: vocabularies that are no files, which a rule file could not name.
    """
    parts = ["\n".join(_lines(rule)) for rule in rules]
    if slots:
        parts.append("\n".join(["[slots]", *(f"{quote(theirs)} = {quote(ours)}" for theirs, ours in slots)]))
    return "\n\n".join(parts) + "\n"


def quote(text: str) -> str:
    """A name as a TOML string."""
    # JSON's string escapes are also TOML's, but for DEL; surrogates are in neither.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _lines(rule: Rule) -> Iterator[str]:
    yield "[[rule]]"
    for key, names in (("from", rule.sources), ("to", rule.targets)):
        if names:
            yield f"{key} = {_value(names[0] if len(names) == 1 else list(names))}"
    if rule.ops:
        yield f"ops = [{', '.join(map(_op, rule.ops))}]"
    for key, text in (("keep", rule.keep), ("drop", rule.drop)):
        if text:
            yield f"{key} = {quote(text)}"
    for key, flag in (("optional", rule.optional), ("regex", rule.regex)):
        if flag:
            yield f"{key} = true"


def _op(op: Op) -> str:
    if isinstance(op, RemapRows) and not (isinstance(op.old_vocab, str) and isinstance(op.new_vocab, str)):
        raise RuleError("remap_rows: its vocabularies were given as tokens, and a rule file names files of tokens.")
    ((name, fields),) = dump_op(op).items()
    kept = {key: value for key, value in fields.items() if key not in op.BOUND}
    return f"{{ {name} = {_value(kept)} }}"


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else repr(value)
