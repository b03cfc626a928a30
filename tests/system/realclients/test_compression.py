"""gRPC messages that are compressed by grpcio: kvorum and an etcd take the same ones."""

from __future__ import annotations

import grpc

from kvorum import etcd_pb2 as pb
from tests.system.realclients.pairs import Pair


def told(endpoint: str, compression: grpc.Compression) -> list[object]:
    """What becomes of a put, a get and a watch, all of them compressed so."""
    said: list[object] = []
    put = pb.PutRequest(key=b"compressed", value=bytes(300_000)).SerializeToString()
    get = pb.RangeRequest(key=b"compressed").SerializeToString()
    watch = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"compressed", start_revision=1))
    with grpc.insecure_channel(endpoint, [("grpc.max_receive_message_length", -1)], compression=compression) as channel:
        try:
            channel.unary_unary("/etcdserverpb.KV/Put")(put, timeout=30)
            answer = channel.unary_unary("/etcdserverpb.KV/Range")(get, timeout=30)
            said += [kv.value == bytes(300_000) for kv in pb.RangeResponse.FromString(answer).kvs]
            watching = channel.stream_stream("/etcdserverpb.Watch/Watch")(iter([watch.SerializeToString()]), timeout=30)
            said.append(pb.WatchResponse.FromString(next(watching)).created)
            said.append(len(pb.WatchResponse.FromString(next(watching)).events) > 0)
            watching.cancel()
        except grpc.RpcError as error:
            said += [error.code(), error.details()]
    return said


def test_compressed_requests(both: Pair) -> None:
    for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate):
        ours, theirs = told(both.kvorum[0], compression), told(both.etcd[0], compression)
        assert ours == theirs
        assert ours == [True, True, True] or compression == grpc.Compression.Deflate
