"""Recipes done with the asyncio client, and what becomes of them when their task is cancelled.

A cancellation never falls into the middle of a change: its answer is awaited, at most as long as the client waits, so
that the recipe knows what there is to take back. It is thrown into the recipe once: where that reads or waits, at once;
after a change, in place of the next step, which therefore must not be one that takes something back (a recipe yields
None in between). From then on every step is done whole, so that a second cancellation doesn't stop the taking back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from kvorum.aio import Client
from kvorum.recipes.steps import Grant, Step, Steps, Watched
from kvorum.verbs import Ask

T = TypeVar("T")


async def run(client: Client, steps: Steps[T], *, whole: bool = False) -> T:
    """Do it all, in this task. A cancelled one ends with the cancellation, however the recipe ends then.

    Args:
      whole: nothing stops it, for it does nothing but take something back.
    """
    cancelled: asyncio.CancelledError | None = None
    resume: Callable[[Any], Step] = steps.send
    what: Any = None
    while True:
        try:
            step = resume(what)
        except StopIteration as done:
            if cancelled is not None:
                raise cancelled from None
            returned: T = done.value
            return returned
        except Exception as error:
            if cancelled is not None:
                raise cancelled from error
            raise
        if cancelled is not None and not whole:
            whole = True
            resume, what = steps.throw, cancelled
            continue
        try:
            if whole or _changes(step):
                task = asyncio.get_running_loop().create_task(_do(client, step))
                while not task.done():
                    try:
                        await asyncio.wait([task])
                    except asyncio.CancelledError as stop:
                        cancelled = stop
                what = task.result()
            else:
                what = await _do(client, step)
            resume = steps.send
        except BaseException as error:
            resume, what = steps.throw, error
            if isinstance(error, asyncio.CancelledError):
                cancelled = error
            if cancelled is not None and not whole:  # if it was a change, it failed, and nobody wants it any more
                whole, what = True, cancelled


def _changes(step: Step) -> bool:
    return isinstance(step, Grant) or (isinstance(step, Ask) and not step.again)


async def _do(client: Client, step: Step) -> Any:
    if isinstance(step, Ask):
        return await client.ask(step)
    if isinstance(step, Grant):
        return await client.lease(step.ttl, on_lost=step.on_lost)
    if isinstance(step, Watched):
        async with client.watch_response(step.key, **step.options) as responses:
            try:
                async with asyncio.timeout(step.timeout):
                    return await anext(responses)
            except TimeoutError:
                return None
            except StopAsyncIteration:
                raise RuntimeError("this client is closed") from None
    return None
