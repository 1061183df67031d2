"""Whole experiments as data, and one call that runs them."""

from vision_wrapper.recipes.identity import read_run
from vision_wrapper.recipes.recipe import Expected, Recipe
from vision_wrapper.recipes.repeat import Comparison, Repeats, compare, repeat
from vision_wrapper.recipes.run import Result, evaluate_run, find_lr, run
from vision_wrapper.recipes.table import RECIPES
from vision_wrapper.recipes.verify import ResumeProof, verify_resume

__all__ = [
    "RECIPES",
    "Comparison",
    "Expected",
    "Recipe",
    "Repeats",
    "Result",
    "ResumeProof",
    "compare",
    "evaluate_run",
    "find_lr",
    "read_run",
    "repeat",
    "run",
    "verify_resume",
]
