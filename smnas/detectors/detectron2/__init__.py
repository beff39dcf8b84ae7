"""Detectors out of detectron2's components: the only package that imports detectron2.

`parts` is what search spaces wire (`components.load_library`), `registry` is for plain detectron2
configs, `lazy` writes detectors down as such, `evaluation` has its compiled COCO metrics. This
module imports none of them, so that each can be had alone.
"""

import warnings

# detectron2 does both; nobody who searches detectors can do anything about it
warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated", FutureWarning)
warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release", UserWarning)
