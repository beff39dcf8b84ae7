"""Training from scratch, short: the recipe, the loop, COCO evaluation. The trial uses it."""
