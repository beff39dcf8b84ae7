"""detectron2's compiled evaluation of COCO metrics, for `smnas.training.evaluation`.

Imports detectron2 alone.
"""

from detectron2.evaluation.fast_eval_api import COCOeval_opt

__all__ = ["COCOeval_opt"]
