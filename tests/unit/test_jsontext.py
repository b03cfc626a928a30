"""etcd's JSON: against protobuf's own mapping where that is right, and against what a real etcd said where it isn't."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from cluster.jsontext import BadJson, Objects, message_of, quoted, text_of
from kvorum import etcd_pb2 as pb

INT64 = st.integers(-(1 << 63), (1 << 63) - 1) | st.just(0)
KV = st.builds(
    pb.KeyValue,
    key=st.binary(max_size=8),
    value=st.binary(max_size=8),
    create_revision=INT64,
    version=INT64,
    lease=INT64,
)
HEADER = st.builds(pb.ResponseHeader, cluster_id=st.integers(0, (1 << 64) - 1), revision=INT64)
OP = st.builds(pb.ResponseOp, response_put=st.builds(pb.PutResponse, header=HEADER)) | st.builds(
    pb.ResponseOp, response_range=st.builds(pb.RangeResponse, kvs=st.lists(KV, max_size=3), more=st.booleans())
)
COMPARE = st.builds(
    pb.Compare, result=st.sampled_from([0, 1, 2, 3]), target=st.sampled_from([0, 4]), version=INT64
) | st.builds(pb.Compare, key=st.binary(max_size=3), value=st.binary(max_size=3), range_end=st.binary(max_size=3))
MESSAGES = st.one_of(
    st.builds(pb.TxnResponse, header=HEADER, succeeded=st.booleans(), responses=st.lists(OP, max_size=3)),
    st.builds(pb.TxnRequest, compare=st.lists(COMPARE, max_size=3)),
    st.builds(
        pb.WatchResponse,
        watch_id=INT64,
        cancel_reason=st.text(max_size=8),
        events=st.lists(st.builds(pb.Event, type=st.sampled_from([0, 1]), kv=KV), max_size=2),
    ),
    st.builds(pb.Member, ID=st.integers(0, 1 << 63), name=st.text(max_size=8), peerURLs=st.lists(st.text(max_size=4))),
    st.builds(pb.LeaseTimeToLiveResponse, TTL=INT64, keys=st.lists(st.binary(max_size=4), max_size=3)),
    st.builds(pb.HelloRequest, protocol=st.integers(0, (1 << 32) - 1)),
)


@given(MESSAGES)
def test_what_is_written_is_protobufs_mapping_in_its_order(message: Message) -> None:
    wanted = json_format.MessageToDict(message, preserving_proto_field_name=True)
    assert json.loads(text_of(message)) == wanted
    assert list(json.loads(text_of(message))) == list(wanted)


@given(MESSAGES)
def test_what_is_written_can_be_read(message: Message) -> None:
    assert message_of(text_of(message).encode(), type(message)) == message
    assert message_of(json_format.MessageToJson(message).encode(), type(message)) == message, "in lowerCamelCase"


@given(st.text(max_size=40), st.sampled_from([pb.TxnRequest, pb.WatchRequest]))
def test_anything_is_a_message_or_refused(text: str, kind: type[Message]) -> None:
    with suppress(BadJson):
        message_of(text.encode(), kind)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", pb.RangeRequest()),
        ("  ", pb.RangeRequest()),
        ("null", pb.RangeRequest()),
        ("{}", pb.RangeRequest()),
        ('{"key":"Zm9v","limit":7}', pb.RangeRequest(key=b"foo", limit=7)),
        ('{"key":"Zm9v","limit":"7"}', pb.RangeRequest(key=b"foo", limit=7)),
        ('{"limit":7.0}', pb.RangeRequest(limit=7)),
        ('{"limit":null,"nobody":{"x":[1]}}', pb.RangeRequest()),
        ('{"rangeEnd":"_-8=","range_end":"/+8="}', pb.RangeRequest(range_end=b"\xff\xef")),
        ('{"key":"Zm9v\\nZm9v\\r\\n"}', pb.RangeRequest(key=b"foofoo")),
        ('{"key":"_-8"}', pb.RangeRequest(key=b"\xff\xef")),
        ('{"sort_order":"DESCEND","sortTarget":4}', pb.RangeRequest(sort_order=2, sort_target=4)),
        ('{"keys_only":true} and what follows', pb.RangeRequest(keys_only=True)),
    ],
)
def test_requests_as_etcd_takes_them(text: str, message: Message) -> None:
    assert message_of(text.encode(), type(message)) == message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("garbage", "invalid character 'g' looking for beginning of value"),
        ('{"key":"Zm9v', "unexpected EOF"),
        ('{"key":"Zm9v"', "unexpected EOF"),
        ('{"key":"!!"}', "illegal base64 data at input byte 0"),
        ('{"key":"Zm9v!"}', "illegal base64 data at input byte 4"),
        ('{"key":"Zm9vZ"}', "illegal base64 data at input byte 4"),
        ('{"key":"Zm9v===="}', "illegal base64 data at input byte 4"),
        ('{"key":5}', "json: cannot unmarshal number into Go value of type []uint8"),
        ('{"limit":"abc"}', "invalid character 'a' looking for beginning of value"),
        ('{"limit":1.5}', "json: cannot unmarshal number 1.5 into Go value of type int64"),
        ('{"limit":true}', "json: cannot unmarshal bool into Go value of type int64"),
        (f'{{"limit":{1 << 63}}}', f"json: cannot unmarshal number {1 << 63} into Go value of type int64"),
        ('{"limit":NaN}', "invalid character 'N' looking for beginning of value"),
        ('{"keys_only":"true"}', "json: cannot unmarshal string into Go value of type bool"),
        ('{"sort_order":"NOPE"}', 'unknown value "\\"NOPE\\"" for enum etcdserverpb.RangeRequest.SortOrder'),
        ("[1]", "json: cannot unmarshal array into Go value of type map[string]json.RawMessage"),
    ],
)
def test_mistakes_as_etcd_calls_them(text: str, said: str) -> None:
    with pytest.raises(BadJson) as raised:
        message_of(text.encode(), pb.RangeRequest)
    assert str(raised.value) == said


MONSTERS = ["[" * 200_000, '{"compare":' * 50_000, '{"limit":' + "9" * 10_000 + "}", '{"x":[' + "[]," * 200_000]


@pytest.mark.parametrize("text", MONSTERS, ids=["brackets", "messages", "digits", "values"])
def test_monsters_are_refused(text: str) -> None:
    with pytest.raises(BadJson):
        message_of(text.encode(), pb.TxnRequest if "compare" in text else pb.RangeRequest)


def test_transactions_within_transactions_have_an_end() -> None:
    def nested(depth: int) -> bytes:
        return b'{"success":[{"request_txn":' * depth + b"{}" + b"}]}" * depth

    message_of(nested(40), pb.TxnRequest)
    with pytest.raises(BadJson):
        message_of(nested(60), pb.TxnRequest)


def test_strings_are_written_as_go_writes_them() -> None:
    assert quoted('a"b<c>&\u2028é\n') == '"a\\"b\\u003cc\\u003e\\u0026\\u2028é\\n"'


SEVERAL = b' {"a":"}{\\"]"}{"b":[{}]}\n\t[1,"\\\\"] {} '


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_objects_are_cut_apart_wherever_the_bytes_are(size: int) -> None:
    objects, found = Objects(), []
    for at in range(0, len(SEVERAL), size):
        found += objects.feed(SEVERAL[at : at + size])
    assert found == [b'{"a":"}{\\"]"}', b'{"b":[{}]}', b'[1,"\\\\"]', b"{}"]
    assert len(objects) == 0


def test_what_is_not_whole_is_counted_and_what_is_no_object_refused() -> None:
    objects = Objects()
    assert list(objects.feed(b'{"a":1}{"b')) == [b'{"a":1}']
    assert len(objects) == 3
    assert list(objects.feed(b'":2}')) == [b'{"b":2}']
    several = objects.feed(b"{} x {}")
    assert next(several) == b"{}", "what stands before a mistake is still heard"
    with pytest.raises(BadJson, match="invalid character 'x' looking for beginning of value"):
        next(several)
