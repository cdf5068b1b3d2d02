"""The process `chorus`, also as `python -m rlhf`."""

import signal

# Until the command handles signals itself, Ctrl-C ends the process as it ends any other: without a traceback of imports.
signal.signal(signal.SIGINT, signal.SIG_DFL)


def start() -> None:
    """Run the command line and end the process."""
    from rlhf.apps.cli import entry

    entry()


if __name__ == "__main__":
    start()
