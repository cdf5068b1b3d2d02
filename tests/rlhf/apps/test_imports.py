"""What a question to somebody loads: imports are counted, for time depends on the machine."""

import subprocess
import sys

HEAVY = (
    "sklearn",
    "pandas",
    "flax",
    "optax",
    "orbax",
    "pyarrow",
    "transformers",
    "torch",
    "matplotlib",
    "scipy.stats",
)


def loaded(code: str) -> set[str]:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{code}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_a_question_needs_no_model_and_no_fit():
    assert loaded("import rlhf.apps.users, rlhf.apps.asking") == set()


def test_the_command_itself_loads_nothing_of_weight():
    assert loaded("import rlhf.apps.cli") == set()
