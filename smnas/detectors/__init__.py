"""From a sample to a detector: parts, how they are built in one library, and spaces over them.

`components`, `strings` and `operators` know samples, `torchvision` builds the parts, `space` is the
base of every search space. The first three need no torch.
"""
