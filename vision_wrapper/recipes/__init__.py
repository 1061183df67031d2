"""Whole experiments as data, and one call that runs them."""

from vision_wrapper.recipes.recipe import Expected, Recipe
from vision_wrapper.recipes.run import Result, evaluate_run, find_lr, read_run, run
from vision_wrapper.recipes.table import RECIPES

__all__ = ["RECIPES", "Expected", "Recipe", "Result", "evaluate_run", "find_lr", "read_run", "run"]
