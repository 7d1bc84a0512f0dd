"""What optimizers call their slots, and which names mean the same.

Knows the optimizers of Keras 3, and the slot names of tf_keras and TF1 where these differ. Pure.
"""

from __future__ import annotations

import re

# Attribute names of Keras 3.15's optimizers that are no regular plural of the role.
_ROLES = {
    "_model_variables_moving_average": "average",
    "adam_velocities": "velocity",
}
# What Keras 2 and TF1 call slots, by class: an Adamax has an `m` and a `v` too, and its `v` is another thing.
_SLOT_ROLES = {
    **{(f, "m"): "momentum" for f in ("adam", "adamw", "nadam")},
    **{(f, "v"): "velocity" for f in ("adam", "adamw", "nadam")},
    ("adam", "vhat"): "velocity_hat",
    ("adamw", "vhat"): "velocity_hat",
    # The largest gradient so far, with decay: Keras 3 and new-style optimizers of Keras 2 call it `u`.
    ("adamax", "v"): "u",
    ("rmsprop", "rms"): "velocity",
    ("rmsprop", "mg"): "average_gradient",
    # Sonnet's, whose Adam says `m` and `v` too.
    ("rmsprop", "ms"): "velocity",
    ("rmsprop", "mom"): "momentum",
    ("adadelta", "accum_grad"): "accumulated_grad",
    ("adadelta", "accum_var"): "accumulated_delta_var",
    ("sgd", "m"): "momentum",
    ("lion", "m"): "momentum",
}
_FAMILIES = frozenset(
    "adadelta adafactor adagrad adam adamax adamw ftrl lamb lion lossscaleoptimizer muon nadam rmsprop "
    "schedulefreeadamw sgd".split()
)
# The classes whose first and second moments are the same thing: running means of the gradient and of its
# square. RMSprop's `velocity` is a second moment too, but its `momentum` holds steps, so it stays apart.
_SAME_MOMENTS = frozenset({"adam", "adamw", "nadam"})
# What the base class of Keras 3 keeps, whatever the class.
_CLASSLESS = frozenset({"average", "accumulated_gradient"})
# How names of slots of Keras 3 end that are not called as their role is.
ENDINGS = {"gradient_accumulator": "accumulated_gradient"}
# The class of what keeps averages of weights beside an optimizer (`tf.train.ExponentialMovingAverage`).
SHADOWS = "exponentialmovingaverage"
# The class that wraps an optimizer for mixed precision, and what wrappers of Keras 3 call the optimizer inside.
LOSS_SCALE = "lossscaleoptimizer"
INSIDE = "inner_optimizer"
# What TF1 calls slots in a name-based checkpoint, `dense/kernel/Adam_1`: by the name of the class, and in the order in
# which it makes them. RMSProp has one more where it is centered.
_TF1_SLOTS: dict[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    "Adam": ("adam", (("momentum", "velocity"),)),
    "Momentum": ("momentum", (("momentum",),)),
    "RMSProp": ("rmsprop", (("velocity", "momentum"), ("velocity", "average_gradient", "momentum"))),
    "Adagrad": ("adagrad", (("accumulator",),)),
    "Adadelta": ("adadelta", (("accumulated_grad", "accumulated_delta_var"),)),
    "Ftrl": ("ftrl", (("accumulator", "linear"),)),
    "ExponentialMovingAverage": (SHADOWS, (("average",),)),
}
# BERT's own optimizer (`AdamWeightDecayOptimizer`) spells its roles out.
_TF1_ROLES = {"adam_m": ("adamw", "momentum"), "adam_v": ("adamw", "velocity")}
# Classes of TF1 whose slots mean something else than those of any class of Keras: `Momentum` sums gradients up, and
# the SGD of Keras steps, which have the learning rate in them.
_TF1_FAMILIES = frozenset({"momentum", SHADOWS})
# How a slot scales when its variable's gradient is scaled: 1 for a mean of gradients, 2 for one of squares,
# -1 for an average of the variable itself (which scales with the variable).
_DEGREES = {
    "momentum": 1,
    "velocity": 2,
    "velocity_hat": 2,
    "accumulator": 2,
    "accumulated_grad": 2,
    "accumulated_gradient": 1,
    "average_gradient": 1,
    "average": -1,
}
# Where a class means something else by such a name. What ScheduleFreeAdamW calls momentum is no mean of gradients but
# the weights that the gradients are applied to (`z`); it begins as a copy of the variable.
_DEGREES_OF_CLASS = {("rmsprop", "momentum"): 0, ("schedulefreeadamw", "momentum"): -1}

# Class and role -> the roles of the same owner with which it must begin anew, if at all. Adam divides momentum by the
# root of velocity (a kept 0 and a gradient of 0 make that 1e7 steps); a centered RMSprop does so with a difference.
_TOGETHER: dict[tuple[str, str], tuple[str, ...]] = {
    **{(f, "velocity"): ("momentum",) for f in ("adam", "adamw", "nadam", "lamb", "muon")},
    ("adamax", "u"): ("m",),
    ("rmsprop", "velocity"): ("average_gradient",),
    ("ftrl", "accumulator"): ("linear",),
}


def role_of_slot(name: str, family: str) -> str:
    """The role of a slot that Keras 2 or TF1 calls so: `m` of an Adam is `momentum`."""
    return _SLOT_ROLES.get((family, name), name)


def is_word_of(word: str, role: str) -> bool:
    """Whether some optimizer of Keras 2 calls a role so."""
    return word == role or any(word == name and role == own for (_, name), own in _SLOT_ROLES.items())


def role_of_edge(edge: str) -> str:
    """The role that an optimizer's attribute holds: `_momentums` is `momentum`, `_velocities` is `velocity`."""
    if edge in _ROLES:
        return _ROLES[edge]
    name = edge.lstrip("_")
    if name.endswith("ies"):
        return name[:-3] + "y"
    return name[:-1] if name.endswith("s") and len(name) > 2 else name


def family_of(label: str) -> str:
    """The optimizer class that an optimizer's own name gives away (`rm_sprop_1` is `rmsprop`), or empty."""
    base = class_name(label)
    return base if base in _FAMILIES else ""


def is_known(family: str) -> bool:
    """Whether a class is one of those whose slots are known here; a user's own class is not."""
    return family in _FAMILIES or family in _TF1_FAMILIES


def family_of_tf1_slot(word: str) -> str | None:
    """The class of the optimizer whose slot's name ends in a word; None where no optimizer of TF1 uses it."""
    found = _TF1_SLOTS.get(word) or _TF1_ROLES.get(word)
    return found[0] if found is not None else None


def roles_of_tf1_slots(word: str, count: int) -> tuple[str, ...]:
    """The roles of a variable's slots of one word, in the order of their numbers; empty where they are not so many."""
    if word in _TF1_ROLES:
        return (_TF1_ROLES[word][1],) if count == 1 else ()
    return next((roles for roles in _TF1_SLOTS[word][1] if len(roles) == count), ())


def same_meaning(source: str, target: str, role: str) -> bool:
    """Whether slots of one role mean the same in two optimizer classes."""
    return source == target or role in _CLASSLESS or {source, target} <= _SAME_MOMENTS


def degree_of(role: str, family: str) -> int | None:
    """The power of the gradient that a slot holds, or None where it is not known."""
    return _DEGREES_OF_CLASS.get((family, role), _DEGREES.get(role))


def is_copy(role: str, family: str) -> bool:
    """Whether a slot is made of its variable's values, and not of gradients: an average, or ScheduleFreeAdamW's z."""
    return degree_of(role, family) == -1


def begins_with(role: str, family: str) -> tuple[str, ...]:
    """The roles of the same variable that must begin anew with this one, because an update divides them by it."""
    return _TOGETHER.get((family, role), ())


def class_name(label: str) -> str:
    """The class whose instances Keras would name so by itself: `my_opt_1` is of `MyOpt`; in lower case."""
    return re.sub(r"_\d+\Z", "", label.lower()).replace("_", "")


def begins_above_zero(role: str, family: str) -> bool:
    """Whether a slot must not begin as zero: the classes that divide by it give it a value of its own to begin with."""
    return (family, role) == ("ftrl", "accumulator")
