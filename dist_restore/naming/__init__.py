"""An object graph -> canonical names, aliases, slots: one code for files and for live objects.

Knows nodes and edges (`core/graph.py`), and what Keras, tf_keras, Sonnet and TF1 call things; knows no tensor, no
file, no TensorFlow.

    leaves, optimizers = name_graph(nodes)
"""
