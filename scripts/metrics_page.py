"""Write docs/metrics.md from the table in rlhf/run/metric_docs.toml:  python scripts/metrics_page.py"""

from pathlib import Path

from rewards.files import write_text
from rlhf.run.metric_docs import markdown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"

if __name__ == "__main__":
    write_text(PAGE, markdown())
