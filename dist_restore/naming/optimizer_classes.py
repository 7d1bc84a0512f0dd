"""Which class an optimizer may be of, by the attributes that it keeps its state in.

A checkpoint has no class names. An optimizer's own name gives its class away where nobody chose one; what it keeps, and
under which attributes, is written by the class itself, so that this speaks where the two contradict. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

# What stands first in a structure: whose optimizer it is.
KERAS_3, KERAS_2, LEGACY = "keras3", "keras2", "legacy"
# Attributes that say nothing of the class: of the base classes, of Muon's settings, and what a schedule takes away.
_ANY_CLASS = frozenset(
    {
        "_variables",
        "_trainable_variables",
        "_trainable_variables_indices",
        "_iterations",
        "_learning_rate",
        "_model_variables_moving_average",
        "_accumulated_gradients",
        "_index_dict",
        "exclude_layers",
        "iter",
        "iterations",
        "decay",
        "learning_rate",
    }
)
_ADAM_LIKE = ("_momentums", "_velocities")
_BOTH = {
    ("_velocities", "_momentums", "_average_gradients"): ("rmsprop",),
    (*_ADAM_LIKE, "_velocity_hats"): ("adam", "adamw"),
    (*_ADAM_LIKE, "_u_product"): ("nadam",),
    ("_m", "_u"): ("adamax",),
    ("_accumulated_grads", "_accumulated_delta_vars"): ("adadelta",),
    ("_accumulators",): ("adagrad",),
    ("_accumulators", "_linears"): ("ftrl",),
    ("_r", "_c", "_v"): ("adafactor",),
}
# Attributes -> classes, as Keras 3.0 to 3.15 and tf_keras 2.11 to 2.21 have them.
_CLASSES: dict[str, dict[tuple[str, ...], tuple[str, ...]]] = {
    KERAS_3: {
        **_BOTH,
        ("momentums",): ("sgd",),
        ("_momentums",): ("lion",),
        _ADAM_LIKE: ("adam", "adamw", "lamb", "schedulefreeadamw"),
        ("momentums", "adam_velocities"): ("muon",),
    },
    KERAS_2: {**_BOTH, ("momentums",): ("sgd", "lion"), _ADAM_LIKE: ("adam", "adamw")},
    # Slots and settings of the optimizers before 2.11.
    LEGACY: {
        ("m", "v", "beta_1", "beta_2"): ("adam", "adamax"),
        ("m", "v", "vhat", "beta_1", "beta_2"): ("adam",),
        ("m", "v", "beta_1", "beta_2", "momentum_cache"): ("nadam",),
        ("momentum",): ("sgd",),
        ("rho", "rms", "momentum"): ("rmsprop",),
        ("rho", "rms", "mg", "momentum"): ("rmsprop",),
        ("rho", "accum_grad", "accum_var"): ("adadelta",),
        ("accumulator",): ("adagrad",),
    },
}
_TABLE = {(library, frozenset(k)): frozenset(v) for library, table in _CLASSES.items() for k, v in table.items()}
_SAME = frozenset({"adam", "adamw"})


def structure_of(library: str, attributes: Iterable[str]) -> tuple[str, ...]:
    """What tells the class: the library, and the sorted attributes that not every class has."""
    # A mark that `targets` hangs on what it wants named is no attribute.
    own = sorted({name for name in attributes if name.isidentifier()} - _ANY_CLASS)
    return (library, *own)


def classes_of(structure: tuple[str, ...]) -> frozenset[str]:
    """The classes that have this structure; none where it is not known."""
    return _TABLE.get((structure[0], frozenset(structure[1:])), frozenset()) if structure else frozenset()


def settle(said: str, structure: tuple[str, ...]) -> str:
    """The class of an optimizer in a checkpoint, or empty.

    Args:
      said: what its name gives away, or empty.
      structure: what it keeps.

    Returns:
      What the name says, if that can be. Else the class whose attributes these are, where there is but one; a single
      attribute does not tell it, for classes of users keep `momentums` too.
    """
    possible = classes_of(structure)
    if said in possible or not possible:
        return said
    return min(possible) if len(structure) > 2 and (len(possible) == 1 or possible <= _SAME) else ""
