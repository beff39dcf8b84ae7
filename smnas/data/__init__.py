"""Data in COCO format: reading, splitting, importing, checking and generating it.

Empty on purpose: `smnas.data.split` must be importable without torch, which `smnas.data.coco`
needs.
"""
