"""The keys below a prefix as a dict that follows them, for the asyncio client: a task of its own keeps it up to date.

async with View(client, "config/") as settings:
    settings[b"color"]                      # a look into memory

What it promises is in kvorum.recipes.view.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

from kvorum.aio import Client, Responses
from kvorum.errors import Ambiguous, Compacted, Unavailable
from kvorum.recipes.view import RETRY_SECONDS, Changed, ViewCore
from kvorum.txn import Key


class View(ViewCore):
    """As kvorum.recipes.View. Complete as soon as it is entered, or its start() has returned."""

    def __init__(self, client: Client, prefix: Key, *, on_change: Changed | None = None) -> None:
        super().__init__(prefix, on_change)
        self._client = client
        self._news = asyncio.Event()  # another one after each change
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Once: show what is there, and follow it from now on."""
        if self._task is not None or self._closed:
            raise RuntimeError("this view was started already")
        responses = await self._read()
        self._task = asyncio.get_running_loop().create_task(self._run(responses))

    async def _read(self) -> Responses:
        options = self._begin(await self._client.get_prefix_response(self._prefix))
        responses = self._client.watch_prefix_response(self._prefix, **options)
        await responses.start()
        return responses

    async def _run(self, responses: Responses) -> None:
        try:
            while True:
                try:
                    async with responses:
                        async for response in responses:
                            self._follow(response)
                    return  # the client was closed
                except Compacted:
                    responses = await self._again()
        finally:
            self._closed = True
            self._tell(self.revision)

    async def _again(self) -> Responses:
        """Compacted in front of us: read anew, as soon as somebody answers."""
        while True:
            try:
                return await self._read()
            except (Unavailable, Ambiguous):
                await asyncio.sleep(RETRY_SECONDS)

    def _tell(self, revision: int) -> None:
        self.revision = revision
        self._news.set()
        self._news = asyncio.Event()

    async def wait(self, revision: int, timeout: float | None = None) -> bool:
        """Until all changes up to `revision` are shown. False: not within `timeout` seconds, or it is closed.

        A revision without a change below the prefix is known to be shown only when something later is: give the
        revision of a write below it.
        """
        return await self.wait_for(lambda _: self.revision >= revision, timeout)

    async def wait_for(self, true: Callable[[Mapping[bytes, bytes]], bool], timeout: float | None = None) -> bool:
        """Until `true(view)`. False: not within `timeout` seconds, or it is closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not (self._closed or true(self)):
                    await self._news.wait()
        return true(self)

    async def close(self) -> None:
        """It shows what it has shown last from now on. Raises what had ended it before, if that was an error."""
        self._closed = True
        self._tell(self.revision)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.result()

    async def __aenter__(self) -> View:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
