"""A cluster over gRPC, without a client: requests as messages, answers without what differs by nature."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from kvorum import etcd_pb2 as pb
from kvorum.wire import METHODS, Method
from tests.storage.comparable import bare

SECONDS = 60.0

SHAPES = {shape.request: shape for method, shape in METHODS.items() if method != Method.RANGE_STREAM}
WATCH = METHODS[Method.WATCH].path
STREAMED = (pb.LeaseKeepAliveRequest,)
"""Asked on a stream, which each request has for itself here."""


class Members:
    """The members of one cluster."""

    def __init__(self, endpoints: list[str]) -> None:
        self.channels = [grpc.insecure_channel(endpoint) for endpoint in endpoints]
        self._calls: dict[tuple[int, type[Any]], Callable[..., Any]] = {}

    def close(self) -> None:
        for channel in self.channels:
            channel.close()

    def call(self, member: int, request: Any) -> Any:
        """What was set in the header, and the bare answer; or the error's code and text."""
        kind = type(request)
        if (member, kind) not in self._calls:
            shape, channel = SHAPES[kind], self.channels[member]
            form = channel.stream_stream if kind in STREAMED else channel.unary_unary
            self._calls[member, kind] = form(
                shape.path, request_serializer=kind.SerializeToString, response_deserializer=shape.response.FromString
            )
        call = self._calls[member, kind]
        try:
            if kind in STREAMED:
                response = next(call(iter([request]), timeout=SECONDS, wait_for_ready=True))
            else:
                response = call(request, timeout=SECONDS, wait_for_ready=True)
        except grpc.RpcError as error:
            return error.code(), error.details()
        return [field.name for field, _ in response.header.ListFields()], bare(request, response)


class WatchStream:
    """A watch stream at a member; what it was told by watch, in the order in which it was."""

    def __init__(self, members: Members, member: int = 0) -> None:
        self._requests: queue.SimpleQueue[pb.WatchRequest | None] = queue.SimpleQueue()
        call = members.channels[member].stream_stream(
            WATCH,
            request_serializer=pb.WatchRequest.SerializeToString,
            response_deserializer=pb.WatchResponse.FromString,
        )
        self._responses = call(iter(self._requests.get, None), timeout=3 * SECONDS, wait_for_ready=True)
        self.events: dict[int, list[pb.Event]] = {}
        self.ends: dict[int, tuple[int, str]] = {}
        """Of the watches that were cancelled: what they were told of compaction, and why."""

    def create(self, request: pb.WatchCreateRequest) -> int:
        """The id of the new watch: it is there when this returns."""
        self._requests.put(pb.WatchRequest(create_request=request))
        while not (told := self._read()).created:
            pass
        return told.watch_id

    def cancel(self, watches: list[int]) -> None:
        for watch in watches:
            self._requests.put(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch)))
        self.read_until(lambda: self.ends.keys() >= set(watches))

    def read_until(self, done: Callable[[], bool]) -> None:
        while not done():
            self._read()

    def close(self) -> None:
        self._requests.put(None)
        self._responses.cancel()

    def _read(self) -> pb.WatchResponse:
        """Take in the next response. Raises grpc.RpcError if there is none."""
        told: pb.WatchResponse = next(self._responses)
        assert told.header.revision or told.compact_revision  # etcd leaves it out there
        if told.created:
            assert told.watch_id not in self.events, "the id of another watch"
            self.events[told.watch_id] = []
        self.events[told.watch_id].extend(told.events)
        if told.canceled:
            self.ends[told.watch_id] = told.compact_revision, told.cancel_reason
        return told


def events_of(watch: pb.WatchCreateRequest, since: int, events: list[pb.Event]) -> Iterator[pb.Event]:
    """Those that a watch is to be told, given all that there are with what was before, and where it begins."""
    for event in events:
        key, end = event.kv.key, watch.range_end
        inside = key == watch.key if not end else key >= watch.key and (end == b"\0" or key < end)
        deleted = event.type == pb.Event.DELETE
        ignored = pb.WatchCreateRequest.NODELETE if deleted else pb.WatchCreateRequest.NOPUT
        if inside and event.kv.mod_revision >= since and ignored not in watch.filters:
            yield event
