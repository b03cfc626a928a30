"""kvorum and etcd side by side: the same workloads, the same disk, one after the other, ratios round by round.

    __main__     the command line and the rounds
    workloads    what is asked of both
    systems      a cluster under test: started on fresh data, found in /proc, stopped, gone
    loads        runs a load generator against a cluster and adds what /proc says
    etcdload/    the load generator for etcd: Go, the official client
    nativeload   the load generator for kvorum: its own client, on the native protocol
    report       RESULTS.md, results.json and the picture
    profiling    where the time goes in each kvorum process (py-spy)

`python -m ops.bench` from the root of the repository, in the project's virtualenv.
"""
