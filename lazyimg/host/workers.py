"""A few threads that work for one event loop.

What `ThreadPoolExecutor` does with a dozen locks for each job, each of which reads the clock (see
`mutex`), is done here with a queue and one call back to the loop.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """Threads that are started as they are needed, and kept.

    Args:
        count: how many, at most.
        name: what they are called.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._threads: list[Thread] = []
        self._busy = 0  # jobs that wait or run; of the event loop
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._closed = False

    def submit(
        self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        """Let a thread call a function; called in the event loop.

        Returns:
            What it gives or raises. When this is cancelled, the function is not called, or goes on.

        Raises:
            RuntimeError: `close` was called.
        """
        if self._closed:
            raise RuntimeError(f"{self._name}: the threads have ended")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            self._busy -= 1
            if future.done():  # cancelled
                return
            if error is None:
                future.set_result(result)  # type: ignore[arg-type]  # it is a T then
            else:
                future.set_exception(error)

        def job() -> None:
            result, error = None, None
            try:
                if not future.done():
                    result = function(*args, **kwargs)
            except BaseException as raised:
                error = raised
            with suppress(RuntimeError):  # the loop is closed: nobody wants it
                loop.call_soon_threadsafe(settle, result, error)
            del error  # refers to this frame

        self._busy += 1
        if self._busy > len(self._threads) < self._count:
            thread = Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._threads.append(thread)
        self._jobs.put(job)
        return future

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Let a thread call a function that uses what is the caller's; gives or raises as it does.

        If this is cancelled, that waits until the function has ended: a thread cannot be stopped.

        Raises:
            RuntimeError: `close` was called.
        """
        call = self.submit(function, *args, **kwargs)
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            while not call.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([call])
            call.exception()  # seen: the cancellation goes first
            raise

    def _run(self) -> None:
        job: Any = self._jobs.get()
        while job is not None:
            job()
            del job  # and what it holds, while the thread is idle
            job = self._jobs.get()

    def close(self) -> None:
        """Wait until all that was submitted has ended, and end the threads. Blocks.

        While it is called, nothing may be submitted.
        """
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
