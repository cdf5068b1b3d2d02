"""The one event loop of the process on which users' async functions run, all of them side by side.

It lasts as long as the process, so that a client or a semaphore which a function keeps between calls stays usable.
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable

from rlhf.phi.columns import user_code

_LOCK = threading.Lock()
_running: list[asyncio.AbstractEventLoop] = []


def wait_for(awaitable: Awaitable[object], seconds: float) -> object:
    """The result of an awaitable; the thread that calls waits.

    Raises:
      user_code.Failed: no result after `seconds`; the task is cancelled, and as something may hold up the loop, the next
        call gets another one.
      BaseException: whatever the awaitable raised.
    """

    async def guarded() -> tuple[object, BaseException | None]:
        try:
            return await awaitable, None
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # sys.exit would end the loop of everybody else
            return None, error

    loop = _loop()
    future = asyncio.run_coroutine_threadsafe(guarded(), loop)
    try:
        result, error = future.result(seconds)
    except concurrent.futures.TimeoutError:
        future.cancel()
        with _LOCK:
            if loop in _running:
                _running.remove(loop)
        raise user_code.Failed(None) from None
    if error is not None:
        raise error
    return result


def _loop() -> asyncio.AbstractEventLoop:
    with _LOCK:
        if not _running:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="rewards-event-loop", daemon=True).start()
            _running.append(loop)
        return _running[0]
