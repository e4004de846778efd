"""The settings of other trainers and collectors as a recipe, with every key that could not come along."""
