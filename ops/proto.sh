#!/bin/sh
# Generate kvorum/etcd_pb2.py and its types anew from kvorum/etcd.proto.
#
# The compiler's version is pinned: generated code asks for a protobuf runtime at least as new as its compiler, and users
# have all sorts of runtimes. 1.71 carries protoc 5.29, which is what setup.py promises to run on.
set -eu
cd "$(dirname "$0")/.."
tools=build/proto-venv
if [ ! -x $tools/bin/python ]; then
    .venv/bin/python -m venv $tools
    $tools/bin/python -m pip install --quiet --disable-pip-version-check 'grpcio-tools==1.71.*' 'setuptools<80'
fi
$tools/bin/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. kvorum/etcd.proto
git diff --stat -- kvorum/etcd_pb2.py kvorum/etcd_pb2.pyi
