"""Formats behind one reader: `open_checkpoint` tells them apart, in one table.

Knows files; knows no live object and no rule.
`tf/`, `keras/` and `flat/` are the formats, `files/` what they share: archives, stretches of bytes, mounts.

    with contextlib.closing(open_checkpoint("runs/ckpt-7")) as source:
        source.index()
"""
