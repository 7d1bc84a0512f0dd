"""Whether an optimizer of a program and one of a checkpoint mean the same by their roles. Pure."""

from __future__ import annotations

from dist_restore.core.index import OptimizerInfo
from dist_restore.naming.optimizer_classes import classes_of
from dist_restore.naming.slot_roles import class_name, is_known, same_meaning

# What `use_ema` and `gradient_accumulation_steps` give to every class.
OF_ALL = frozenset({"average", "accumulated_gradient"})


def same_class(ours: OptimizerInfo, theirs: OptimizerInfo, role: str) -> bool:
    """Whether slots of a role may be taken over unasked.

    Where both classes are known, these say it. Else a name that somebody chose, or a class of theirs, hides one. Then
    the program's own checkpoint is known by what a program never changes: the optimizer's name and what it keeps.
    """
    if is_known(theirs.family) and is_known(ours.family):
        return same_meaning(theirs.family, ours.family, role)
    if not theirs.label:
        return _may_be(ours, theirs)
    return _same_label(ours, theirs) and _same_structure(ours, theirs)


def _may_be(ours: OptimizerInfo, theirs: OptimizerInfo) -> bool:
    """Whether what nobody named keeps what the program's class keeps: slots of tf_keras that were built, not made."""
    return _same_structure(ours, theirs) and ours.family in classes_of(theirs.structure)


def is_presumed(theirs: OptimizerInfo) -> bool:
    """Whether nothing but what it keeps says the class, and that is one attribute, which other classes have too."""
    return not theirs.family and not theirs.label and len(theirs.structure) < 3


def _same_label(ours: OptimizerInfo, theirs: OptimizerInfo) -> bool:
    """Equal names; or both are what Keras calls the instances of the program's class, which it counts."""
    if ours.label == theirs.label:
        return bool(ours.label)
    return bool(ours.family) and class_name(theirs.label) == class_name(ours.label) == ours.family


def _same_structure(ours: OptimizerInfo, theirs: OptimizerInfo) -> bool:
    if len(ours.structure) < 2 or len(theirs.structure) < 2:  # the lists of tf_keras are not always saved
        return set(ours.roles) - OF_ALL == set(theirs.roles) - OF_ALL
    possible = classes_of(theirs.structure)
    may_be = not possible or not is_known(ours.family) or ours.family in possible
    return may_be and ours.structure == theirs.structure
