"""report.html of a run: a verdict first, then plots and every figure explained; tables for the terminal.

Importing it loads matplotlib (about a second): import it where a report is written.
"""

from rlhf.report.comparison import brief_table as comparison_table
from rlhf.report.console import console_table
from rlhf.report.evaluation import write_evaluation_report
from rlhf.report.rewards import axis_items, write_rewards_report
from rlhf.report.sweep import sweep_table, sweep_verdict, write_sweep_report
from rlhf.report.training import write_training_report
from rlhf.report.verdict import Verdict, evaluation_verdict, rewards_verdict

__all__ = [
    "Verdict",
    "axis_items",
    "comparison_table",
    "console_table",
    "evaluation_verdict",
    "rewards_verdict",
    "sweep_table",
    "sweep_verdict",
    "write_evaluation_report",
    "write_rewards_report",
    "write_sweep_report",
    "write_training_report",
]
