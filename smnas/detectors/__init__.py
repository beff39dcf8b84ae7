"""From a sample to a detector: parts, how they are built in one library, and spaces over them.

`components` names the options, `space` is the base of every search space, `torchvision` builds the
parts. This package may import torch, torchvision and NNI; nothing light may import it.
"""

import warnings

with warnings.catch_warnings():
    # NNI wraps whatever torch.nn lists and warns of the names that newer versions of torch added
    # there and that are no modules. It does so once, on its first import, so this is the one place.
    warnings.filterwarnings("ignore", message=".* is found to be not a nn.Module")
    import nni.nas.nn.pytorch  # noqa: F401
