"""Headers at etcd's JSON gateway: --cors, --host-whitelist, Grpc-Timeout; at kvorum and at a real etcd 3.5.1 alike."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

from tests.system.test_json import WAIT, b64, bare, both

LINES = ("Access-Control-Allow-Headers", "Access-Control-Allow-Methods", "Access-Control-Allow-Origin", "Content-Type")
RANGE = json.dumps({"key": b64("k")})
WATCH = json.dumps({"create_request": {"key": b64("k")}})
LATE = "context deadline exceeded"
HOME = {"Host": "localhost:2379"}

ASKED: list[tuple[str, str, str, dict[str, str]]] = [
    ("POST", "/v3/kv/range", RANGE, HOME | {"Origin": "http://good.example:80"}),
    ("POST", "/v3/kv/range", RANGE, HOME | {"Origin": "http://bad.example:80"}),
    ("POST", "/v3/kv/range", RANGE, HOME | {"Origin": "http://good.example"}),
    ("POST", "/v3/kv/range", RANGE, HOME),
    ("OPTIONS", "/v3/kv/range", "", HOME | {"Origin": "http://good.example:80"}),
    ("OPTIONS", "/v3/kv/range", "", HOME | {"Origin": "http://bad.example:80"}),
    ("OPTIONS", "/nothing", "", HOME),
    ("GET", "/nothing", "", HOME | {"Origin": "http://good.example:80"}),
    *(
        (method, path, "", {"Host": host})
        for method, path in (("GET", "/health"), ("GET", "/nothing"), ("POST", "/v3/kv/put"), ("OPTIONS", "/v3/watch"))
        for host in ("evil.example", "evil.example:2379", "LOCALHOST")
    ),
    ("POST", "/v3/kv/range", RANGE, HOME | {"Grpc-Timeout": "20S"}),
    ("POST", "/v3/kv/range", RANGE, HOME | {"Grpc-Timeout": "0n"}),
    ("POST", "/v3/kv/range", RANGE, HOME | {"Grpc-Timeout": "-1S"}),
    ("POST", "/v3/kv/range", RANGE, HOME | {"Grpc-Timeout": "x"}),
    ("POST", "/v3/kv/range", RANGE, HOME | {"Grpc-Timeout": "5"}),
    ("POST", "/v3/watch", WATCH, HOME | {"Grpc-Timeout": "1"}),
    ("POST", "/v3/watch", WATCH, HOME | {"Grpc-Timeout": "1500m"}),
    ("POST", "/v3/lock/lock", json.dumps({"name": b64("l"), "lease": "7"}), HOME),
    ("POST", "/v3/lock/lock", json.dumps({"name": b64("l")}), HOME | {"Grpc-Timeout": "500m"}),
]


def asked(port: int, method: str, path: str, body: str, headers: dict[str, str]) -> tuple[Any, ...]:
    """Status, the headers of LINES, and the body as JSON without what is aside; of a 421 that there is one.

    At etcd a watch whose time is up ends by its gateway's clock, as DeadlineExceeded, or by its server's, which sends
    the bare error as Unknown, whichever is first; the two are taken for one.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    try:
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    said: Any = bool(text)
    if answer.headers["Content-Type"] == "application/json":
        said = [bare(json.loads(line)) for line in text.splitlines() if line]
        for line in said:
            if "grpc_code" in (line.get("error") or ""):
                del line["error"]["http_status"]
                line["error"].pop("code", None)
                if line["error"]["message"] == LATE and line["error"]["grpc_code"] == 2:
                    line["error"] |= {"grpc_code": 4, "http_code": 504}
    return answer.status, {name: answer.headers[name] for name in LINES}, said


def test_headers_are_taken_as_by_etcd(tmp_path: Path) -> None:
    settings = {"cors": "http://good.example:80,http://other.example:80", "host-whitelist": "localhost,127.0.0.1"}
    with both(tmp_path, settings) as (ours, theirs):
        for port in (ours, theirs):
            assert asked(port, "POST", "/v3/lease/grant", json.dumps({"ID": "7", "TTL": "600"}), HOME)[0] == 200
        for one in ASKED:
            assert asked(ours, *one) == asked(theirs, *one), one
