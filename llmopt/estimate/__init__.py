"""What a model will need and give before anything is loaded: from its config.json or its files' headers alone.

``source`` opens what was named, ``architectures`` turn a config into the list of its tensors, ``weights`` give each tensor
its bits, ``memory`` adds the KV cache and what an engine holds while it works, ``fits`` asks what a GPU would hold.

How to add an architecture: one line in ``architectures.FAMILIES``; ``tests/contract/test_shapes.py`` compares it with
what transformers builds.
"""
