"""Detectors out of detectron2's components: the only package that imports detectron2.

`parts` is what search spaces wire (`components.load_library`), `registry` is for plain detectron2
configs, `lazy` writes detectors down as such, `evaluation` has its compiled COCO metrics. This
module imports nothing, so that each can be had alone.
"""
