"""TensorFlow's bundles (TF2 and TF1) and SavedModels."""
