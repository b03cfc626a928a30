// Walks through etcd's official client and what it brings along, and prints what it was told, one line a fact.
//
//	goclient endpoint[,endpoint...]
//
// The same walk on two empty clusters prints the same lines: ids of members and leases and terms are left out, and
// where two things happen at once, only what both orders have in common is printed. It ends with 1 at the first call
// that fails where it must not.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	etcd "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/ordering"
	"google.golang.org/grpc/metadata"
)

// For all of it. On an idle machine it takes twelve seconds.
const patience = 100 * time.Second

var (
	ctx    context.Context
	client *etcd.Client
)

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

func must[T any](got T, err error) T {
	check(err)
	return got
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func header(h *etcdserverpb.ResponseHeader) string {
	if h == nil {
		return "no header"
	}
	return fmt.Sprintf("@%d[%t %t %t]", h.Revision, h.ClusterId != 0, h.MemberId != 0, h.RaftTerm != 0)
}

func kv(one *mvccpb.KeyValue) string {
	if one == nil {
		return "none"
	}
	value := string(one.Value)
	if len(value) > 40 {
		value = fmt.Sprintf("%s...(%d)", value[:8], len(value))
	}
	return fmt.Sprintf("%s=%q c%d m%d v%d leased:%t", one.Key, value, one.CreateRevision, one.ModRevision, one.Version, one.Lease != 0)
}

func kvs(all []*mvccpb.KeyValue) string {
	told := []string{}
	for _, one := range all {
		told = append(told, kv(one))
	}
	return "{" + strings.Join(told, "; ") + "}"
}

func sayRange(what string, r *etcdserverpb.RangeResponse) {
	say("%s: %s count %d more %t %s", what, header(r.Header), r.Count, r.More, kvs(r.Kvs))
}

func sayError(what string, err error) {
	var known rpctypes.EtcdError
	if errors.As(err, &known) {
		say("%s: %v, %q", what, known.Code(), known.Error())
		return
	}
	say("%s: %v", what, err)
}

func sayTxn(what string, r *etcdserverpb.TxnResponse) {
	told := header(r.Header)
	if what == "  txn" {
		told = "" // etcd 3.5.1 leaves the header of a nested one empty, later ones don't
	}
	say("%s: %s succeeded %t", what, told, r.Succeeded)
	for _, op := range r.Responses {
		switch one := op.Response.(type) {
		case *etcdserverpb.ResponseOp_ResponsePut:
			say("  put %s, before %s", header(one.ResponsePut.Header), kv(one.ResponsePut.PrevKv))
		case *etcdserverpb.ResponseOp_ResponseRange:
			sayRange("  range", one.ResponseRange)
		case *etcdserverpb.ResponseOp_ResponseDeleteRange:
			d := one.ResponseDeleteRange
			say("  deleted %d %s, before %s", d.Deleted, header(d.Header), kvs(d.PrevKvs))
		case *etcdserverpb.ResponseOp_ResponseTxn:
			sayTxn("  txn", one.ResponseTxn)
		}
	}
}

func get(what, key string, opts ...etcd.OpOption) {
	r, err := client.Get(ctx, key, opts...)
	if err != nil {
		sayError(what, err)
		return
	}
	sayRange(what, (*etcdserverpb.RangeResponse)(r))
}

func keys() {
	for i, key := range []string{"k/a", "k/b", "k/c", "k/d", "l"} {
		r := must(client.Put(ctx, key, fmt.Sprint("value ", 9-i)))
		say("put %s: %s", key, header(r.Header))
	}
	r := must(client.Put(ctx, "k/b", "again", etcd.WithPrevKV()))
	say("put over it: %s, before %s", header(r.Header), kv(r.PrevKv))
	now := r.Header.Revision
	get("one", "k/a")
	get("none", "nothing")
	get("prefix", "k/", etcd.WithPrefix())
	get("prefix at a revision", "k/", etcd.WithPrefix(), etcd.WithRev(now-1))
	get("from key, limited", "k/b", etcd.WithFromKey(), etcd.WithLimit(2))
	get("range", "k/a", etcd.WithRange("k/c"))
	get("count", "k/", etcd.WithPrefix(), etcd.WithCountOnly())
	get("keys only", "k/", etcd.WithPrefix(), etcd.WithKeysOnly())
	get("serializable", "k/a", etcd.WithSerializable())
	for _, target := range []etcd.SortTarget{
		etcd.SortByKey, etcd.SortByVersion, etcd.SortByCreateRevision, etcd.SortByModRevision, etcd.SortByValue,
	} {
		get(fmt.Sprint("descending by ", target), "k/", etcd.WithPrefix(), etcd.WithSort(target, etcd.SortDescend), etcd.WithLimit(1))
	}
	get("modified since", "k/", etcd.WithPrefix(), etcd.WithMinModRev(now-2))
	get("modified until", "k/", etcd.WithPrefix(), etcd.WithMaxModRev(now-2))
	get("created since", "k/", etcd.WithPrefix(), etcd.WithMinCreateRev(now-3), etcd.WithMaxCreateRev(now-2))
	get("first created", "k/", etcd.WithFirstCreate()...)
	get("last changed", "k/", etcd.WithLastRev()...)
	get("last key", "k/", etcd.WithLastKey()...)
	get("future", "k/", etcd.WithRev(now+1000))
	get("everything", "", etcd.WithPrefix(), etcd.WithCountOnly())
	_, err := client.Put(ctx, "", "no key")
	sayError("no key", err)
	_, err = client.Put(ctx, "nothing", "", etcd.WithIgnoreValue())
	sayError("no value to keep", err)
	_, err = client.Put(ctx, "big", strings.Repeat("x", 1600*1024))
	sayError("too large", err)
	must(client.Put(ctx, "big", strings.Repeat("x", 1500*1024)))
	get("big", "big")
	d := must(client.Delete(ctx, "k/c", etcd.WithFromKey(), etcd.WithPrevKV(), etcd.WithRange("k/d")))
	say("delete: %s %d %s", header(d.Header), d.Deleted, kvs(d.PrevKvs))
	d = must(client.Delete(ctx, "k/", etcd.WithPrefix()))
	say("delete a prefix: %s %d", header(d.Header), d.Deleted)
	d = must(client.Delete(ctx, "k/", etcd.WithPrefix()))
	say("delete nothing: %s %d", header(d.Header), d.Deleted)
	get("before the deletion", "k/", etcd.WithPrefix(), etcd.WithRev(now))
	c := must(client.Compact(ctx, now, etcd.WithCompactPhysical()))
	say("compact: %s", header(c.Header))
	get("compacted", "k/", etcd.WithPrefix(), etcd.WithRev(now-1))
	_, err = client.Compact(ctx, now)
	sayError("compact again", err)
	_, err = client.Compact(ctx, now+1000)
	sayError("compact the future", err)
}

func transactions() {
	swap := func(old, new string) {
		r := must(client.Txn(ctx).If(etcd.Compare(etcd.Value("t/a"), "=", old)).
			Then(etcd.OpPut("t/a", new, etcd.WithPrevKV())).Else(etcd.OpGet("t/a")).Commit())
		sayTxn(fmt.Sprintf("swap %q for %q", old, new), (*etcdserverpb.TxnResponse)(r))
	}
	r := must(client.Txn(ctx).If(etcd.Compare(etcd.CreateRevision("t/a"), "=", 0)).Then(etcd.OpPut("t/a", "1")).Commit())
	sayTxn("create", (*etcdserverpb.TxnResponse)(r))
	swap("1", "2")
	swap("1", "3")
	swap("2", "3")
	r = must(client.Txn(ctx).If(
		etcd.Compare(etcd.Version("t/a"), ">", 1), etcd.Compare(etcd.Version("t/a"), "!=", 9),
		etcd.Compare(etcd.ModRevision("t/a"), "<", 1<<40), etcd.Compare(etcd.LeaseValue("t/a"), "=", 0),
		etcd.Compare(etcd.Version("t/"), ">", 0).WithPrefix(),
	).Then(
		etcd.OpGet("t/", etcd.WithPrefix()), etcd.OpPut("t/b", "b"), etcd.OpPut("t/c", "c", etcd.WithPrevKV()),
		etcd.OpTxn([]etcd.Cmp{etcd.Compare(etcd.Value("t/b"), "=", "b")},
			[]etcd.Op{etcd.OpPut("t/d", "nested"), etcd.OpGet("t/d")}, []etcd.Op{etcd.OpPut("t/e", "not")}),
		etcd.OpDelete("t/a", etcd.WithPrevKV()), etcd.OpGet("t/", etcd.WithPrefix(), etcd.WithCountOnly()),
	).Commit())
	sayTxn("much at once", (*etcdserverpb.TxnResponse)(r))
	var batch []etcd.Op
	for i := range 128 {
		batch = append(batch, etcd.OpPut(fmt.Sprintf("batch/%03d", i), "x"))
	}
	b := must(client.Txn(ctx).Then(batch...).Commit())
	say("batch: %s %d", header(b.Header), len(b.Responses))
	_, err := client.Txn(ctx).Then(append(batch, etcd.OpPut("one/more", ""))...).Commit()
	sayError("too many", err)
	_, err = client.Txn(ctx).Then(etcd.OpPut("t/x", "1"), etcd.OpPut("t/x", "2")).Commit()
	sayError("twice", err)
	// Without a put beside it: etcd 3.5.1 would do the put all the same.
	_, err = client.Txn(ctx).Then(etcd.OpGet("t/b", etcd.WithRev(1<<40))).Commit()
	sayError("read of the future", err)
	_, err = client.Txn(ctx).Then(etcd.OpPut("t/x", "1", etcd.WithLease(12345))).Commit()
	sayError("no such lease", err)
	get("after all that", "t/", etcd.WithPrefix())
	sayTxn("empty", (*etcdserverpb.TxnResponse)(must(client.Txn(ctx).Commit())))
}

func event(e *etcd.Event) string {
	return fmt.Sprintf("%s %s before %s", e.Type, kv(e.Kv), kv(e.PrevKv))
}

// Print what a watch is told until it has been told of `count` events.
func follow(what string, watch etcd.WatchChan, count int) {
	for count > 0 {
		r, open := <-watch
		if !open {
			say("%s: closed", what)
			return
		}
		if err := r.Err(); err != nil {
			sayError(what+": ended", err)
			say("  compacted at %d", r.CompactRevision)
			return
		}
		if r.Created || r.IsProgressNotify() {
			say("%s: created %t progress %t", what, r.Created, r.IsProgressNotify())
		}
		for _, e := range r.Events {
			say("%s: %s", what, event(e))
			count--
		}
	}
}

func watches() {
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	start := must(client.Put(ctx, "w/a", "1")).Header.Revision
	must(client.Put(ctx, "w/a", "2"))
	must(client.Delete(ctx, "w/a"))
	must(client.Txn(ctx).Then(etcd.OpPut("w/b", "3"), etcd.OpPut("w/c", "4"), etcd.OpPut("v", "5")).Commit())
	follow("history", client.Watch(within, "w/", etcd.WithPrefix(), etcd.WithRev(start)), 5)
	follow("with the past", client.Watch(within, "w/", etcd.WithPrefix(), etcd.WithRev(start+1), etcd.WithPrevKV()), 4)
	follow("puts", client.Watch(within, "w/", etcd.WithPrefix(), etcd.WithRev(start), etcd.WithFilterDelete()), 4)
	follow("deletions", client.Watch(within, "w/", etcd.WithPrefix(), etcd.WithRev(start), etcd.WithFilterPut()), 1)
	follow("from key", client.Watch(within, "w/b", etcd.WithFromKey(), etcd.WithRev(start)), 2)

	live := client.Watch(within, "w/", etcd.WithPrefix(), etcd.WithCreatedNotify(), etcd.WithPrevKV())
	if r := <-live; !r.Created {
		panic("not created")
	}
	say("live: created")
	must(client.Put(ctx, "w/live", "1"))
	follow("live", live, 1)
	must(client.Delete(ctx, "w/", etcd.WithPrefix()))
	follow("live", live, 3)

	// A progress that is asked for tells of a revision at which all watches of the stream are.
	notified := client.Watch(etcd.WithRequireLeader(within), "quiet", etcd.WithCreatedNotify())
	<-notified
	revision := must(client.Put(ctx, "loud", "")).Header.Revision
	for {
		check(client.RequestProgress(etcd.WithRequireLeader(within)))
		if r := <-notified; r.IsProgressNotify() && r.Header.Revision >= revision {
			say("progress: %d, asked for after %d", r.Header.Revision, revision)
			break
		}
	}

	// More in one revision than fits into one message.
	fragments := client.Watch(within, "large/", etcd.WithPrefix(), etcd.WithRev(revision), etcd.WithFragment())
	var large []etcd.Op
	for i := range 10 {
		large = append(large, etcd.OpPut(fmt.Sprintf("large/%d", i), strings.Repeat("y", 140*1024)))
	}
	must(client.Txn(ctx).Then(large...).Commit())
	must(client.Txn(ctx).Then(large...).Commit())
	follow("fragments", fragments, 20)

	first := must(client.Put(ctx, "w/old", "1")).Header.Revision
	last := must(client.Put(ctx, "w/old", "2")).Header.Revision
	must(client.Compact(ctx, last))
	follow("compacted", client.Watch(within, "w/old", etcd.WithRev(first)), 1)
	// On a stream of its own: etcd 3.5.1 refuses a watch under the id of another.
	follow("empty range", client.Watch(metadata.AppendToOutgoingContext(within, "own", "stream"), "w/b", etcd.WithRange("w/a")), 1)

	one, stop := context.WithCancel(within)
	ended := client.Watch(one, "w/ended", etcd.WithCreatedNotify())
	<-ended
	stop()
	for range ended {
	}
	say("cancelled: closed")
	future := client.Watch(within, "w/future", etcd.WithRev(last+3))
	must(client.Put(ctx, "w/future", "too early"))
	must(client.Put(ctx, "w/future", "too early as well"))
	must(client.Put(ctx, "w/future", "now"))
	follow("from the future", future, 1)
}

func leases() {
	granted := must(client.Grant(ctx, 60))
	say("grant: %d seconds, an id: %t", granted.TTL, granted.ID != 0)
	must(client.Put(ctx, "leased/1", "x", etcd.WithLease(granted.ID)))
	must(client.Put(ctx, "leased/2", "x", etcd.WithLease(granted.ID)))
	get("leased", "leased/", etcd.WithPrefix())
	left := must(client.TimeToLive(ctx, granted.ID, etcd.WithAttachedKeys()))
	names := []string{}
	for _, key := range left.Keys {
		names = append(names, string(key))
	}
	sort.Strings(names)
	say("time to live: %s granted %d left %t keys %v", header(left.ResponseHeader), left.GrantedTTL, left.TTL > 0 && left.TTL <= 60, names)
	once := must(client.KeepAliveOnce(ctx, granted.ID))
	say("kept alive: %s for %d", header(once.ResponseHeader), once.TTL)
	_, err := client.KeepAliveOnce(ctx, 123456789)
	sayError("keep alive what isn't there", err)
	gone := must(client.TimeToLive(ctx, 123456789))
	say("time to live of what isn't there: %s %d %d", header(gone.ResponseHeader), gone.TTL, gone.GrantedTTL)
	all := must(client.Leases(ctx))
	say("leases: %s %d, this among them: %t", header(all.ResponseHeader), len(all.Leases), all.Leases[0].ID == granted.ID)
	say("revoke: %s", header(must(client.Revoke(ctx, granted.ID)).Header))
	_, err = client.Revoke(ctx, granted.ID)
	sayError("revoke again", err)
	get("revoked", "leased/", etcd.WithPrefix())
	_, err = client.Grant(ctx, 9_000_000_001)
	sayError("too long", err)

	// Kept alive for longer than it would live; then not any more.
	short := must(client.Grant(ctx, 5))
	attached := must(client.Put(ctx, "short", "", etcd.WithLease(short.ID))).Header.Revision
	within, cancel := context.WithCancel(ctx)
	alive := must(client.KeepAlive(within, short.ID))
	watch := client.Watch(ctx, "short", etcd.WithRev(attached+1))
	for since := time.Now(); time.Since(since) < 6*time.Second; {
		if r, open := <-alive; !open || r.TTL != 5 {
			panic("not kept alive")
		}
	}
	get("kept alive", "short")
	cancel()
	follow("expired", watch, 1)
}

// What is in a snapshot of the client's one endpoint: the database is etcd's own, its checksum right, and the changes
// made here are in it as they are in etcd's, at places counted from the first of them.
func snapshots() {
	first := must(client.Put(ctx, "snap/a", "1")).Header.Revision
	lease := must(client.Grant(ctx, 600))
	must(client.Put(ctx, "snap/b", strings.Repeat("long", 20000), etcd.WithLease(lease.ID)))
	must(client.Txn(ctx).Then(etcd.OpPut("snap/a", "2"), etcd.OpDelete("snap/b"), etcd.OpPut("snap/c", "")).Commit())
	must(client.Delete(ctx, "snap/a"))
	must(client.Put(ctx, "snap/a", "3"))

	reader := must(client.Snapshot(ctx))
	file := must(os.CreateTemp("", "snapshot"))
	defer os.Remove(file.Name())
	size := must(io.Copy(file, reader))
	check(reader.Close())
	content := must(os.ReadFile(file.Name()))
	end := size - sha256.Size
	say("snapshot: whole pages %t, checksum %t", end%512 == 0, sha256.Sum256(content[:end]) == [32]byte(content[end:]))
	check(file.Truncate(end))
	check(file.Close())
	db := must(bbolt.Open(file.Name(), 0o600, &bbolt.Options{ReadOnly: true}))
	check(db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			say("damage: %v", err)
		}
		say("lease: %t", tx.Bucket([]byte("lease")).Get(binary.BigEndian.AppendUint64(nil, uint64(lease.ID))) != nil)
		for _, name := range []string{"consistent_index", "term"} {
			say("%s: %d bytes", name, len(tx.Bucket([]byte("meta")).Get([]byte(name))))
		}
		return tx.Bucket([]byte("key")).ForEach(func(at, data []byte) error {
			main, sub := int64(binary.BigEndian.Uint64(at)), binary.BigEndian.Uint64(at[9:])
			if main < first {
				return nil
			}
			var one mvccpb.KeyValue
			check(one.Unmarshal(data))
			for _, revision := range []*int64{&one.CreateRevision, &one.ModRevision} {
				if *revision != 0 {
					*revision -= first - 1000
				}
			}
			say("change +%d.%d%s: %s", main-first, sub, at[17:], kv(&one))
			return nil
		})
	}))
	check(db.Close())

	stream := must(etcdserverpb.NewMaintenanceClient(client.ActiveConnection()).Snapshot(ctx, &etcdserverpb.SnapshotRequest{}))
	var told []*etcdserverpb.SnapshotResponse
	for {
		one, err := stream.Recv()
		if err == io.EOF {
			break
		}
		check(err)
		told = append(told, one)
	}
	last := len(told) - 1
	right, left := true, uint64(0)
	for i := last - 1; i >= 0; i-- {
		right = right && told[i].Header == nil && told[i].RemainingBytes == left && (i == last-1 || len(told[i].Blob) == 32<<10)
		left += uint64(len(told[i].Blob))
	}
	say("stream: several %t, in pieces of 32 KiB %t", last > 2, right)
	say("its end: %d bytes, %d remain, %s", len(told[last].Blob), told[last].RemainingBytes, header(told[last].Header))

	within, cancel := context.WithCancel(ctx)
	reader = must(client.Snapshot(within))
	must(io.ReadFull(reader, make([]byte, 4096)))
	cancel()
	_, err := io.Copy(io.Discard, reader)
	sayError("a snapshot that was cancelled", err)
}

func recipes() {
	sessions := []*concurrency.Session{}
	for range 3 {
		sessions = append(sessions, must(concurrency.NewSession(client, concurrency.WithTTL(60))))
	}
	counter, inside := 0, 0
	var all sync.WaitGroup
	for _, session := range sessions {
		all.Add(1)
		go func() {
			defer all.Done()
			mutex := concurrency.NewMutex(session, "mutex")
			for range 5 {
				check(mutex.Lock(ctx))
				inside++
				if inside != 1 {
					panic("two hold it")
				}
				counter++
				inside--
				check(mutex.Unlock(ctx))
			}
		}()
	}
	all.Wait()
	say("mutex: %d times, nobody else inside", counter)
	held, other := concurrency.NewMutex(sessions[0], "held"), concurrency.NewMutex(sessions[1], "held")
	check(held.Lock(ctx))
	say("held: %s", header(held.Header()))
	sayError("try", other.TryLock(ctx))
	r := must(client.Txn(ctx).If(held.IsOwner()).Then(etcd.OpPut("fenced", "")).Commit())
	say("fenced: %t", r.Succeeded)
	check(held.Unlock(ctx))
	check(other.TryLock(ctx))
	check(other.Unlock(ctx))

	first, second := concurrency.NewElection(sessions[0], "office"), concurrency.NewElection(sessions[1], "office")
	_, err := first.Leader(ctx)
	sayError("nobody", err)
	check(first.Campaign(ctx, "first"))
	observed := second.Observe(ctx)
	say("observed: %s", (<-observed).Kvs[0].Value)
	check(first.Proclaim(ctx, "first, still"))
	say("observed: %s", (<-observed).Kvs[0].Value)
	done := make(chan error)
	go func() { done <- second.Campaign(ctx, "second") }()
	check(first.Resign(ctx))
	check(<-done)
	say("observed: %s", (<-observed).Kvs[0].Value)
	say("leader: %s", must(second.Leader(ctx)).Kvs[0].Value)
	check(second.Resign(ctx))

	must(client.Put(ctx, "account/a", "100"))
	must(client.Put(ctx, "account/b", "0"))
	for i := range 3 {
		all.Add(1)
		go func() {
			defer all.Done()
			for range 5 {
				transfer := func() error {
					_, err := concurrency.NewSTM(client, func(s concurrency.STM) error {
						var a, b int
						fmt.Sscan(s.Get("account/a"), &a)
						fmt.Sscan(s.Get("account/b"), &b)
						s.Put("account/a", fmt.Sprint(a-1))
						s.Put("account/b", fmt.Sprint(b+1))
						return nil
					}, concurrency.WithIsolation([]concurrency.Isolation{
						concurrency.SerializableSnapshot, concurrency.Serializable, concurrency.RepeatableReads,
					}[i]))
					return err
				}
				err := transfer()
				for errors.Is(err, rpctypes.ErrFutureRev) { // it reads from any member, which may be behind the one before
					err = transfer()
				}
				check(err)
			}
		}()
	}
	all.Wait()
	accounts := must(client.Get(ctx, "account/", etcd.WithPrefix()))
	say("accounts: %s %s", accounts.Kvs[0].Value, accounts.Kvs[1].Value)
	for _, session := range sessions {
		check(session.Close())
	}
	left := must(client.Get(ctx, "", etcd.WithPrefix(), etcd.WithKeysOnly()))
	for _, one := range left.Kvs {
		if one.Lease != 0 {
			say("left: %s", one.Key)
		}
	}
}

func wrappers() {
	inner := namespace.NewKV(client.KV, "space/")
	must(inner.Put(ctx, "a", "1"))
	must(inner.Put(ctx, "b", "2"))
	spaced := must(inner.Get(ctx, "", etcd.WithPrefix()))
	for _, one := range spaced.Kvs {
		say("namespace: %s=%s", one.Key, one.Value)
	}
	whole := must(client.Get(ctx, "space/", etcd.WithPrefix()))
	for _, one := range whole.Kvs {
		say("outside: %s=%s", one.Key, one.Value)
	}
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := namespace.NewWatcher(client.Watcher, "space/").Watch(within, "a", etcd.WithRev(whole.Kvs[0].ModRevision))
	for _, e := range (<-watch).Events {
		say("namespace, watched: %s %s=%s", e.Type, e.Kv.Key, e.Kv.Value)
	}

	syncer := mirror.NewSyncer(client, "space/", 0)
	base, failed := syncer.SyncBase(within)
	for r := range base {
		for _, one := range r.Kvs {
			say("mirrored: %s=%s", one.Key, one.Value)
		}
	}
	check(<-failed)
	updates := syncer.SyncUpdates(within)
	must(client.Put(ctx, "space/c", "3"))
	must(client.Delete(ctx, "space/a"))
	for told := 0; told < 2; {
		for _, e := range (<-updates).Events {
			say("mirrored update: %s %s=%s", e.Type, e.Kv.Key, e.Kv.Value)
			told++
		}
	}

	kvA, closeA, err := leasing.NewKV(client, "lkv/", concurrency.WithTTL(60))
	check(err)
	kvB, closeB, err := leasing.NewKV(client, "lkv/", concurrency.WithTTL(60))
	check(err)
	must(kvA.Put(ctx, "shared", "1"))
	say("leasing: %s", must(kvA.Get(ctx, "shared")).Kvs[0].Value)
	say("leasing, cached: %s", must(kvA.Get(ctx, "shared")).Kvs[0].Value)
	must(kvB.Put(ctx, "shared", "2"))
	say("leasing, elsewhere: %s", must(kvA.Get(ctx, "shared")).Kvs[0].Value)
	t := must(kvB.Txn(ctx).If(etcd.Compare(etcd.Value("shared"), "=", "2")).Then(etcd.OpPut("shared", "3")).Commit())
	say("leasing, txn: %t, then %s", t.Succeeded, must(kvA.Get(ctx, "shared")).Kvs[0].Value)
	d := must(kvA.Delete(ctx, "shared"))
	say("leasing: deleted %d, left %d", d.Deleted, len(must(kvB.Get(ctx, "shared")).Kvs))
	closeA()
	closeB()

	ordered := ordering.NewKV(client.KV, func(etcd.Op, etcd.OpResponse, int64) error { return errors.New("backwards") })
	for range 5 {
		must(ordered.Put(ctx, "ordered", ""))
		must(ordered.Get(ctx, "ordered"))
	}
	say("ordered")
}

func cluster() {
	members := must(client.MemberList(ctx))
	say("members: %s", header(members.Header))
	names := []string{}
	for _, one := range members.Members {
		names = append(names, fmt.Sprint(one.Name, len(one.PeerURLs), len(one.ClientURLs), one.IsLearner))
	}
	sort.Strings(names)
	say("%v", names)
	check(client.Sync(ctx))
	say("endpoints after sync: %d", len(client.Endpoints()))
	leaders := 0
	for _, endpoint := range client.Endpoints() {
		s := must(client.Status(ctx, endpoint))
		say("status: size %t in use %t index %t errors %v learner %t", s.DbSize > 0, s.DbSizeInUse > 0, s.RaftIndex >= s.RaftAppliedIndex, s.Errors, s.IsLearner)
		if s.Leader == s.Header.MemberId {
			leaders++
		}
		d := must(client.Defragment(ctx, endpoint))
		say("defragment: %s", header(d.Header))
	}
	say("leaders: %d", leaders)
	alarms := must(client.AlarmList(ctx))
	say("alarms: %s %v", header(alarms.Header), alarms.Alarms)
	get("after sync", "l")
	_, err := client.MoveLeader(ctx, 12345)
	say("move the leader to nobody, an error: %t", err != nil)
	_, err = client.Authenticate(ctx, "nobody", "nothing")
	sayError("authenticate", err)
	_, err = client.AuthEnable(ctx)
	sayError("enable", err)
	status := must(client.AuthStatus(ctx))
	say("auth: %t %d", status.Enabled, status.AuthRevision)
}

func main() {
	within, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ctx = within
	endpoints := strings.Split(os.Args[1], ",")
	connect := func(to []string) { client = must(etcd.New(etcd.Config{Endpoints: to, DialTimeout: 30 * time.Second})) }
	// What one member alone has answered it has applied, so that it tells of nothing older after it. The rest asks all.
	connect(endpoints[:1])
	for _, part := range []struct {
		name string
		walk func()
	}{
		{"keys", keys}, {"transactions", transactions}, {"watches", watches}, {"leases", leases},
		{"snapshots", snapshots},
		{"recipes", recipes}, {"wrappers", wrappers}, {"cluster", cluster},
	} {
		say("---- %s", part.name)
		if part.name == "recipes" {
			check(client.Close())
			connect(endpoints)
		}
		part.walk()
	}
	check(client.Close())
}
