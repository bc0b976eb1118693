"""Evaluation of language models by generation: sampled answers to instruction sets, ROUGE-L over seeds."""

from hfkd.evaluation.generation import TextGenerator, generate
from hfkd.evaluation.run import SEEDS, evaluate_sets
from hfkd.evaluation.scoring import score
from hfkd.evaluation.sets import SETS, instruct_sets
from hfkd.evaluation.tables import markdown_table, students_table

__all__ = [
    "SEEDS",
    "SETS",
    "TextGenerator",
    "evaluate_sets",
    "generate",
    "instruct_sets",
    "markdown_table",
    "score",
    "students_table",
]
