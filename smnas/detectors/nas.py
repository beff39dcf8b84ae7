"""What smnas takes from NNI's NAS package: the only module that imports it.

NNI wraps whatever torch.nn lists and warns of the names that newer versions of torch added there
and that are no modules. It does so once, on its first import, so this is the one place.
"""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".* is found to be not a nn.Module")
    from nni.nas.nn.pytorch import ModelSpace, ParametrizedModule
    from nni.nas.space import model_context

__all__ = ["ModelSpace", "ParametrizedModule", "model_context"]
