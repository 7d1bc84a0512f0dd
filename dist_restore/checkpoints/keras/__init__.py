"""Keras' files: `.keras`, `.weights.h5`, legacy `.h5`, from Keras 3 and tf_keras."""
