package main

import (
	"context"
	"fmt"
	"log"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	leasesKept   = 1000
	leaseSeconds = 3600
)

// grant makes the leases that the workers keep alive.
func (l *load) grant() {
	for range leasesKept {
		r, err := l.clients[0].Grant(context.Background(), leaseSeconds)
		if err != nil {
			panic(err)
		}
		l.leases = append(l.leases, int64(r.ID))
	}
}

// grantMany grants as many leases as there are keys.
func (l *load) grantMany() {
	started := time.Now()
	var left atomic.Int64
	left.Store(int64(l.spec.Keys))
	var group sync.WaitGroup
	for n := range l.spec.Clients {
		group.Add(1)
		go func() {
			defer group.Done()
			for left.Add(-1) >= 0 {
				if _, err := l.clients[n%len(l.clients)].Grant(context.Background(), leaseSeconds); err != nil {
					log.Fatal(err)
				}
			}
		}()
	}
	group.Wait()
	emit(result{Event: "result", Operations: l.spec.Keys, Seconds: time.Since(started).Seconds()})
}

// keepAlive renews one lease over the worker's own stream: the client's KeepAliveOnce would open a stream for each call.
func (w *worker) keepAlive(c *clientv3.Client) error {
	if w.stream == nil {
		stream, err := pb.NewLeaseClient(c.ActiveConnection()).LeaseKeepAlive(context.Background())
		if err != nil {
			return err
		}
		w.stream = stream
	}
	id := w.leases[w.random.Intn(len(w.leases))]
	if err := w.stream.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
		w.stream = nil
		return err
	}
	r, err := w.stream.Recv()
	if err != nil {
		w.stream = nil
		return err
	}
	if r.ID != id || r.TTL != leaseSeconds {
		return fmt.Errorf("lease %x was renewed as %x for %d s", id, r.ID, r.TTL)
	}
	return nil
}
