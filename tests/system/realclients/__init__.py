"""Programs that were written for etcd, unmodified, at kvorum's gateway and at a real etcd: the two must agree.

    test_etcdctl.py             every command that needs neither users nor a change of members
    test_go_client.py           etcd's own client for Go, and what it brings along (goclient/)
    test_node_client.py         etcd3 for Node (nodeclient/)
    test_python_clients.py      python-etcd3 and aetcd, in environments of their own
    test_python_etcd3_suite.py  python-etcd3's own tests
    test_grpc_at_random.py      random valid requests over gRPC at random members, answers compared field by field
    test_sequences.py           thousands of random sequences of requests and watches, each from an empty keyspace

Each runs one and the same program at both and compares what the two told it. What differs by nature is given names
first (`Names`): ids of members and leases, terms, addresses. Revisions are compared as they are: the same requests in
the same order make the same revisions. So each module has two clusters of its own, three nodes each.
"""
