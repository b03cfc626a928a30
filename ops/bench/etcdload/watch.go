package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const catchUpMax = 60 * time.Second

// heard is when a watcher received the event of a revision; replied, when the put that made it was answered.
type moment struct {
	revision int64
	at       time.Time
}

// watcher hears of every key, over a connection of its own, or of one key, over a connection that it shares.
type watcher struct {
	*load
	key    string // "" for every key
	last   atomic.Int64
	events int // inside the window
	heard  []moment
}

// watch starts the watchers, and returns when each has been created.
func (l *load) watch() []*watcher {
	watchers := make([]*watcher, l.spec.Watchers)
	for i := range watchers {
		w := &watcher{load: l}
		client := l.clients[i%len(l.clients)]
		options := []clientv3.OpOption{clientv3.WithCreatedNotify()}
		what := "key-"
		if l.spec.OwnKeys {
			w.key = key(i * l.spec.Keys / len(watchers))
			what = w.key
		} else {
			options = append(options, clientv3.WithPrefix())
			client = l.connect(l.spec.Endpoints[i%len(l.spec.Endpoints)])
		}
		responses := client.Watch(context.Background(), what, options...)
		created := <-responses
		if !created.Created {
			l.failed(fmt.Errorf("watcher %d was not created: %v", i, created.Err()))
		}
		w.last.Store(created.Header.Revision)
		go w.listen(responses)
		watchers[i] = w
	}
	return watchers
}

func (l *load) connect(endpoint string) *clientv3.Client {
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{endpoint}, DialTimeout: 10 * time.Second, Logger: zap.NewNop(),
	})
	if err != nil {
		panic(err)
	}
	return c
}

// listen checks that nothing is missing: every put of the load makes one revision, so whoever hears of every key hears of each.
func (w *watcher) listen(responses clientv3.WatchChan) {
	for r := range responses {
		now := time.Now()
		if err := r.Err(); err != nil {
			w.failed(err)
			return
		}
		last, ofRevision := w.last.Load(), 0
		for _, event := range r.Events {
			revision := event.Kv.ModRevision
			if w.key == "" {
				// One put, or as many as a transaction has, to each revision.
				ofRevision++
				if revision == last+1 && ofRevision == max(1, w.spec.Puts) {
					last, ofRevision = revision, 0
				} else if revision != last+1 || ofRevision > w.spec.Puts {
					w.failed(fmt.Errorf("a watcher hears of revision %d after %d", revision, last))
					last, ofRevision = revision, 0
				}
			} else {
				if revision <= last || string(event.Kv.Key) != w.key {
					w.failed(fmt.Errorf("a watcher of %s hears of %s at %d after %d", w.key, event.Kv.Key, revision, last))
				}
				last = revision
			}
			if w.spec.Rate > 0 {
				w.heard = append(w.heard, moment{revision, now})
			}
		}
		if !now.Before(w.begin) && now.Before(w.end) {
			w.events += len(r.Events)
		}
		w.last.Store(last)
	}
}

// followSlowest keeps `slowest` up to date until the window has closed.
func (l *load) followSlowest(watchers []*watcher) {
	for time.Now().Before(l.end) {
		slowest := watchers[0].last.Load()
		for _, w := range watchers {
			slowest = min(slowest, w.last.Load())
		}
		l.slowest.Store(slowest)
		time.Sleep(lagPause)
	}
}

// complete waits until every watcher has heard of the newest revision that concerns it.
func (l *load) complete(watchers []*watcher, newest int64) {
	deadline := time.Now().Add(catchUpMax)
	for i, w := range watchers {
		want := newest
		if w.key != "" {
			r, err := l.clients[0].Get(context.Background(), w.key)
			if err != nil || len(r.Kvs) != 1 {
				l.failed(fmt.Errorf("cannot read %s: %v", w.key, err))
				continue
			}
			want = r.Kvs[0].ModRevision
		}
		for w.last.Load() < want && time.Now().Before(deadline) {
			time.Sleep(5 * time.Millisecond)
		}
		if last := w.last.Load(); last < want {
			l.failed(fmt.Errorf("watcher %d has heard up to revision %d, not %d", i, last, want))
		}
	}
}

// delays are the times from a put's reply to its event, of puts answered inside the window; never below zero.
func delays(watchers []*watcher, replies map[int64]time.Time) []time.Duration {
	var all []time.Duration
	for _, w := range watchers {
		for _, h := range w.heard {
			if replied, ok := replies[h.revision]; ok {
				all = append(all, max(0, h.at.Sub(replied)))
			}
		}
	}
	return all
}
