"""What Keras calls its own containers, and what a step through them says. Versions: docs/dev/private_api.md."""

from __future__ import annotations

import re

# Keras' own containers: an index inside one of them was chosen by nobody. (Keras 3.0 - 3.15, tf_keras 2.16 - 2.21;
# lists that a user made are not here, whatever their name.)
POSITIONAL_CONTAINERS = frozenset(
    {
        "_operations",
        "_layers",
        "_variables",
        "_trainable_variables",
        "_non_trainable_variables",
        "_trainable_variables_indices",
        "_self_tracked_trackables",
        "_metrics",
        "_seed_generators",
        "_undeduplicated_weights",
        "variables",
        "trainable_variables",
        "regularization_losses",
    }
)
# Those that list variables which are something else besides: the last ways by which to call one.
VARIABLE_LISTS = frozenset(
    {
        "_variables",
        "_trainable_variables",
        "_non_trainable_variables",
        "_trainable_variables_indices",
        "_undeduplicated_weights",
        "variables",
        "trainable_variables",
        "regularization_losses",
    }
)
# Lists of layers: an index there can be replaced by the layer's own name, where that is known.
LAYER_CONTAINERS = frozenset({"_operations", "_layers"})
# Steps that say nothing about what is below: a Sequential keeps its layers in a hidden functional model.
TRANSPARENT = frozenset({"_functional"})
# What tf_keras adds for loading SavedModels: second paths to everything, all positional.
SKIPPED = frozenset({"keras_api", "_tracked", "_inbound_nodes", "_outbound_nodes"})
# `layer-3`: an edge of the model itself (Keras 2).
NUMBERED_LAYER = re.compile(r"layer(_with_weights)?-\d+\Z")
