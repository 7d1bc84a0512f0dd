"""Live objects -> names and variables, and their only writer (`assigner.py`).

Knows Keras, tf_keras, Sonnet and TensorFlow objects; builds optimizers that have no slots yet; knows no checkpoint.

    targets = find_targets(tf.train.Checkpoint(model=model), strategy)
"""
