// etcdload drives an etcd cluster through the official Go client and says what it saw.
//
//	etcdload '{"endpoints": [...], "workload": "put", "clients": 256, "connections": 24, ...}'
//
// It is a closed loop: `clients` goroutines, each with one call under way, over `connections` connections dealt out to
// the endpoints in turn, as etcd's own benchmark does it. nativeload.py is the same loop for kvorum: the specification, the
// workloads, the definition of a latency and the events on standard output are the same, and workloads.py describes them.
//
//	{"event": "begin"}            the warm-up is over, the window is open
//	{"event": "end"}              the window is closed
//	{"event": "result", ...}      the last line
//
// A latency is the time from before the call to after its answer was read and checked, for calls answered inside the window.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"math/rand"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

type specification struct {
	Endpoints   []string `json:"endpoints"`
	Workload    string   `json:"workload"`
	Clients     int      `json:"clients"`
	Connections int      `json:"connections"`
	Keys        int      `json:"keys"`
	ValueBytes  int      `json:"value_bytes"`
	Warmup      float64  `json:"warmup_seconds"`
	Window      float64  `json:"window_seconds"`
	Timeout     float64  `json:"timeout_seconds"`
	Seed        int64    `json:"seed"`
	Watchers    int      `json:"watchers"` // who listen meanwhile
	OwnKeys     bool     `json:"own_keys"` // each to one key; else each to all of them
	Rate        float64  `json:"rate"`     // calls a second; 0: as many as possible
	Puts        int      `json:"puts"`     // in each transaction of the workload "puts"
	Lag         int64    `json:"lag"`      // revisions that the slowest watcher may be behind when a call is made; 0: any
}

type result struct {
	Event       string   `json:"event"`
	Operations  int      `json:"operations"`
	Seconds     float64  `json:"seconds"`
	P50         float64  `json:"p50_ms"`
	P90         float64  `json:"p90_ms"`
	P99         float64  `json:"p99_ms"`
	Max         float64  `json:"max_ms"`
	PerEndpoint []int    `json:"per_endpoint"`
	Errors      int      `json:"errors"`
	FirstErrors []string `json:"first_errors"`
	ReadBack    int      `json:"read_back"`
	Lost        int      `json:"lost"`
}

const (
	putsPerFill = 100 // etcd takes 128 operations in a transaction
	sampleEvery = 64  // every 64th key is remembered with what was last written to it
	readBackMax = 500
	errorsKept  = 5
	lagPause    = 200 * time.Microsecond
)

// written is the newest acknowledged value of a sampled key, newest by revision.
type written struct {
	revision int64
	value    []byte
}

type load struct {
	spec    specification
	clients []*clientv3.Client // one per connection
	padding []byte

	begin, end time.Time // the window
	leases     []int64

	written atomic.Int64 // newest revision that was answered
	slowest atomic.Int64 // what every watcher has heard of

	mu      sync.Mutex
	errors  int
	first   []string
	samples map[int]written
}

// worker is one closed loop. What it counts is its own until the end, so the loop takes no lock.
type worker struct {
	*load
	number    int
	calls     int
	random    *rand.Rand
	latencies []time.Duration
	endpoints []int
	last      int64 // revision of its last put
	replies   []moment
	stream    pb.Lease_LeaseKeepAliveClient
}

func main() {
	log.SetFlags(0)
	l := &load{samples: map[int]written{}}
	if len(os.Args) != 2 {
		log.Fatal("usage: etcdload SPECIFICATION")
	}
	if err := json.Unmarshal([]byte(os.Args[1]), &l.spec); err != nil {
		log.Fatal(err)
	}
	random := rand.New(rand.NewSource(l.spec.Seed))
	l.padding = make([]byte, 1<<18)
	for i := range l.padding {
		l.padding[i] = byte(random.Intn(256)) // no compressor gets anything for nothing
	}
	for i := range l.spec.Connections {
		c := l.connect(l.spec.Endpoints[i%len(l.spec.Endpoints)])
		defer c.Close()
		l.clients = append(l.clients, c)
		if _, err := c.Get(context.Background(), "connected", clientv3.WithSerializable()); err != nil {
			log.Fatal(err)
		}
	}
	switch l.spec.Workload {
	case "fill":
		l.fill()
	case "grant":
		l.grantMany()
	default:
		l.run()
	}
}

func emit(event any) {
	if err := json.NewEncoder(os.Stdout).Encode(event); err != nil {
		log.Fatal(err)
	}
}

func key(i int) string { return fmt.Sprintf("key-%08d", i) }

// value tells whose it is: the key, then bytes that differ from call to call.
func (w *worker) value(key string) []byte {
	v := make([]byte, 0, w.spec.ValueBytes)
	v = append(v, key...)
	from := w.random.Intn(len(w.padding) - w.spec.ValueBytes)
	return append(v, w.padding[from:from+w.spec.ValueBytes-len(key)]...)
}

// fill writes every key once.
func (l *load) fill() {
	started := time.Now()
	starts := make(chan int)
	var group sync.WaitGroup
	for n := range l.spec.Clients {
		group.Add(1)
		go func() {
			defer group.Done()
			w := l.worker(n)
			for start := range starts {
				var puts []clientv3.Op
				for i := start; i < min(start+putsPerFill, l.spec.Keys); i++ {
					puts = append(puts, clientv3.OpPut(key(i), string(w.value(key(i)))))
				}
				if _, err := l.clients[n%len(l.clients)].Txn(context.Background()).Then(puts...).Commit(); err != nil {
					log.Fatal(err)
				}
			}
		}()
	}
	for start := 0; start < l.spec.Keys; start += putsPerFill {
		starts <- start
	}
	close(starts)
	group.Wait()
	emit(result{Event: "result", Operations: l.spec.Keys, Seconds: time.Since(started).Seconds()})
}

func (l *load) worker(n int) *worker {
	return &worker{
		load: l, number: n, random: rand.New(rand.NewSource(l.spec.Seed + int64(n))),
		endpoints: make([]int, len(l.spec.Endpoints)),
	}
}

func (l *load) run() {
	if l.spec.Workload == "keep-alive" {
		l.grant()
	}
	watchers := l.watch()
	l.begin = time.Now().Add(seconds(l.spec.Warmup))
	l.end = l.begin.Add(seconds(l.spec.Window))
	if l.spec.Lag > 0 {
		go l.followSlowest(watchers)
	}
	var group sync.WaitGroup
	workers := make([]*worker, l.spec.Clients)
	for n := range workers {
		workers[n] = l.worker(n)
		group.Add(1)
		go func() {
			defer group.Done()
			workers[n].loop()
		}()
	}
	time.Sleep(time.Until(l.begin))
	emit(map[string]string{"event": "begin"})
	time.Sleep(time.Until(l.end))
	emit(map[string]string{"event": "end"})
	group.Wait()

	r := result{Event: "result", Seconds: l.spec.Window, PerEndpoint: make([]int, len(l.spec.Endpoints))}
	var all []time.Duration
	replies := map[int64]time.Time{}
	for _, w := range workers {
		all = append(all, w.latencies...)
		for _, m := range w.replies {
			replies[m.revision] = m.at
		}
		for i, n := range w.endpoints {
			r.PerEndpoint[i] += n
		}
	}
	r.Operations = len(all)
	if l.spec.Watchers > 0 {
		l.complete(watchers, l.written.Load())
		if !l.spec.OwnKeys {
			r.Operations = 0
			for _, w := range watchers {
				r.Operations += w.events
			}
		}
		if l.spec.Rate > 0 {
			all = delays(watchers, replies)
		}
	}
	slices.Sort(all)
	r.P50, r.P90, r.P99, r.Max = rank(all, 0.5), rank(all, 0.9), rank(all, 0.99), rank(all, 1)
	r.ReadBack, r.Lost = l.readBack()
	r.Errors, r.FirstErrors = l.errors, l.first
	emit(r)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// rank is the nearest-rank percentile in milliseconds of sorted latencies.
func rank(sorted []time.Duration, share float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	at := int(share*float64(len(sorted))+0.999999) - 1
	return sorted[min(max(at, 0), len(sorted)-1)].Seconds() * 1e3
}

func (w *worker) loop() {
	for {
		if w.spec.Rate > 0 { // calls are dealt out to the workers in turn, and each begins when it is due
			due := float64(w.number+w.calls*w.spec.Clients) / w.spec.Rate
			time.Sleep(time.Until(w.begin.Add(seconds(due - w.spec.Warmup))))
		}
		for w.spec.Lag > 0 && w.written.Load()-w.slowest.Load() > w.spec.Lag && time.Now().Before(w.end) {
			time.Sleep(lagPause)
		}
		started := time.Now()
		if !started.Before(w.end) {
			return
		}
		// A worker keeps its connection, so every node has its share of the calls in flight; a lone worker goes
		// around the connections instead, so that it meets every node.
		connection := w.number % len(w.clients)
		if w.spec.Clients == 1 {
			connection = w.calls % len(w.clients)
		}
		w.calls++
		err := w.call(w.clients[connection])
		now := time.Now()
		if err != nil {
			w.failed(err)
			time.Sleep(10 * time.Millisecond)
		} else if !now.Before(w.begin) && now.Before(w.end) {
			w.latencies = append(w.latencies, now.Sub(started))
			w.endpoints[connection%len(w.endpoints)]++
			if w.spec.Rate > 0 {
				w.replies = append(w.replies, moment{w.last, now})
			}
		}
	}
}

func (w *worker) call(c *clientv3.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), seconds(w.spec.Timeout))
	defer cancel()
	i := w.random.Intn(w.spec.Keys)
	k := key(i)
	switch w.spec.Workload {
	case "put":
		return w.put(ctx, c, i, k)
	case "keep-alive":
		return w.keepAlive(c)
	case "puts":
		return w.puts(ctx, c)
	case "txn":
		return w.txn(ctx, c, i, k)
	case "get":
		return w.get(ctx, c, k)
	case "get-serializable":
		return w.get(ctx, c, k, clientv3.WithSerializable())
	case "mixed":
		if w.random.Intn(10) == 0 {
			return w.put(ctx, c, i, k)
		}
		return w.get(ctx, c, k)
	}
	return fmt.Errorf("no such workload: %s", w.spec.Workload)
}

func (w *worker) put(ctx context.Context, c *clientv3.Client, i int, k string) error {
	v := w.value(k)
	r, err := c.Put(ctx, k, string(v))
	if err != nil {
		return err
	}
	w.wrote(r.Header.Revision)
	w.remember(i, r.Header.Revision, v)
	return nil
}

// puts writes several keys in one transaction.
func (w *worker) puts(ctx context.Context, c *clientv3.Client) error {
	start := w.random.Intn(w.spec.Keys - w.spec.Puts)
	var ops []clientv3.Op
	for i := start; i < start+w.spec.Puts; i++ {
		ops = append(ops, clientv3.OpPut(key(i), string(w.value(key(i)))))
	}
	r, err := c.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return err
	}
	w.wrote(r.Header.Revision)
	return nil
}

func (w *worker) wrote(revision int64) {
	w.last = revision
	for {
		newest := w.written.Load()
		if newest >= revision || w.written.CompareAndSwap(newest, revision) {
			return
		}
	}
}

// txn puts and reads a key if it exists, which it does.
func (w *worker) txn(ctx context.Context, c *clientv3.Client, i int, k string) error {
	v := w.value(k)
	r, err := c.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(k), ">", 0)).
		Then(clientv3.OpPut(k, string(v)), clientv3.OpGet(k)).
		Else(clientv3.OpGet(k)).
		Commit()
	if err != nil {
		return err
	}
	if !r.Succeeded || len(r.Responses) != 2 {
		return fmt.Errorf("txn on %s took the wrong branch", k)
	}
	if kvs := r.Responses[1].GetResponseRange().GetKvs(); len(kvs) != 1 || !bytes.Equal(kvs[0].Value, v) {
		return fmt.Errorf("txn on %s did not read what it put", k)
	}
	w.remember(i, r.Header.Revision, v)
	return nil
}

func (w *worker) get(ctx context.Context, c *clientv3.Client, k string, options ...clientv3.OpOption) error {
	r, err := c.Get(ctx, k, options...)
	if err != nil {
		return err
	}
	if len(r.Kvs) != 1 || len(r.Kvs[0].Value) != w.spec.ValueBytes || !bytes.HasPrefix(r.Kvs[0].Value, []byte(k)) {
		return fmt.Errorf("get of %s gave something else", k)
	}
	return nil
}

func (l *load) failed(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errors++
	if len(l.first) < errorsKept {
		l.first = append(l.first, err.Error())
	}
}

func (l *load) remember(i int, revision int64, value []byte) {
	if i%sampleEvery != 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.samples[i].revision < revision {
		l.samples[i] = written{revision, value}
	}
}

// readBack reads sampled keys from the nodes in turn and compares them with the newest acknowledged write. Where calls failed, a
// newer write than the newest acknowledged one may be there and is no loss.
func (l *load) readBack() (read, lost int) {
	for i, w := range l.samples {
		if read == readBackMax {
			break
		}
		r, err := l.clients[read%len(l.clients)].Get(context.Background(), key(i))
		read++
		switch {
		case err != nil:
			l.failed(err)
		case len(r.Kvs) != 1, r.Kvs[0].ModRevision < w.revision, r.Kvs[0].ModRevision > w.revision && l.errors == 0:
			lost++
		case r.Kvs[0].ModRevision == w.revision && !bytes.Equal(r.Kvs[0].Value, w.value):
			lost++
		}
	}
	return read, lost
}
