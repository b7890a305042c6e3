"""Frozen networks that a loss compares with."""

# What a recipe names as its teacher (the part before the colon), and the network that it becomes.
NETWORKS = {
    "dvae": "tokenizer",
    "dalle": "tokenizer",
    "vqkd": "vqkd",
    "clip": "tower",
    "timm": "timm",
    "checkpoint": "tower",
}
# Raised by every change that can move what such a network says of equal weights and images.
VERSIONS = {"tokenizer": 1, "vqkd": 1, "tower": 1, "timm": 1}
