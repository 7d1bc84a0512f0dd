"""Keras 3's variables, whatever the release calls their class.

Up to Keras 3.6 `keras.Variable` is a subclass of what layers make, and not their class. Private:
`keras.src.backend.common.variables`; where that is not in the class's ancestry, the public class is used.
Tried on Keras 3.6, 3.9 and 3.15.
"""

from __future__ import annotations

from collections.abc import Iterator

import keras


def _class() -> type[keras.Variable]:
    ancestors: Iterator[type[keras.Variable]] = iter(keras.Variable.__mro__)
    return next((c for c in ancestors if c.__module__.endswith("backend.common.variables")), keras.Variable)


KerasVariable = _class()


def unwrap(item: object) -> object:
    """A Keras variable's TensorFlow variable; everything else as it is."""
    return item.value if isinstance(item, KerasVariable) else item
