"""Data in COCO format: reading, splitting, importing, checking and generating it.

Empty on purpose: all but `smnas.data.coco` must be importable without torch.
"""
