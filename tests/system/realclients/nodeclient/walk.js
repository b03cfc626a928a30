// Walks through etcd3, the client of Node, and prints what it was told, one line a fact.
//
//     node walk.js endpoint[,endpoint...]
//
// The same walk on two empty clusters prints the same lines: ids of members and leases and terms are left out. It ends
// with 1 at the first call that fails where it must not, and if it takes longer than `PATIENCE_MS`.
'use strict';

const { Etcd3, EtcdLockFailedError } = require('etcd3');

const PATIENCE_MS = 200_000;
const endpoints = process.argv[2].split(',');

const say = (...what) => console.log(what.map(one => (typeof one === 'string' ? one : JSON.stringify(one))).join(' '));
const pause = ms => new Promise(resolve => setTimeout(resolve, ms));
const header = h => h && `@${h.revision}[${h.cluster_id !== '0'} ${h.member_id !== '0'} ${h.raft_term !== '0'}]`;
const kv = one =>
  one ? `${one.key}=${one.value} ${one.create_revision} ${one.mod_revision} ${one.version} ${one.lease !== '0'}` : 'nothing';
const page = r => `${header(r.header)} ${r.kvs.map(kv).join(', ')} of ${r.count}, more ${r.more}`;

// What the call was refused with; that it is not refused is a failure.
async function refused(what, call) {
  try {
    await call();
  } catch (error) {
    say(what, error.constructor.name, error.message.replace(/\d{10,}/, 'ID'));
    return;
  }
  throw new Error(`${what}: not refused`);
}

function txn(what, r) {
  say(what, header(r.header), r.succeeded);
  for (const one of r.responses) {
    const kind = one.response;
    const told = one[kind];
    const found = [...(told.kvs ?? told.prev_kvs ?? []), ...(told.prev_kv ? [told.prev_kv] : [])];
    say(' ', kind, told.header.revision, found.map(kv), told.deleted ?? null, told.count ?? null);
  }
}

async function keys(client) {
  say('put', header((await client.put('foo').value('bar')).header));
  say(await client.get('foo').string(), await client.get('nothing').string(), await client.get('foo').exists());
  say('put', kv(await client.put('foo').value('again').getPrevious()));
  await client.put('number').value(42);
  await client.put('json').value(JSON.stringify({ a: [1, 'two'] }));
  await client.put('bytes').value(Buffer.from([0, 255, 128, 10]));
  say(await client.get('number').number(), await client.get('json').json());
  say((await client.get('bytes').buffer()).toString('hex'));
  for (let i = 0; i < 5; i++) await client.put(`key${i}`).value(9 - i);
  const all = () => client.getAll().prefix('key');
  say(await all().strings(), await all().numbers());
  say(await all().keys(), await all().count());
  say('sorted', page(await all().sort('Value', 'Descend').limit(2).exec()));
  say('sorted', page(await all().sort('Mod', 'Ascend').limit(3).exec()));
  say('range', page(await client.getAll().inRange({ start: 'key1', end: 'key3' }).exec()));
  say('everything', await client.getAll().keys());
  const then = (await client.get('key1').exec()).header.revision;
  await client.put('key1').value('later');
  await client.delete().key('key2');
  say('in the past', page(await all().revision(then).exec()));
  say('now', page(await all().exec()));
  say('on the spot', page(await all().serializable(true).exec()));
  say('modified since', page(await all().minModRevision(String(BigInt(then) + 1n)).exec()));
  say('created before', page(await all().maxCreateRevision(then).exec()));
  say('touched', header((await client.put('key1').touch()).header), await client.get('key1').string());
  await refused('touch nothing', () => client.put('never').touch());
  await refused('an empty key', () => client.put('').value('x'));
  await refused('from the future', () => client.get('foo').revision('999999').exec());
  say('deleted', (await client.delete().prefix('key').getPrevious()).map(kv));
  say('deleted', (await client.delete().key('foo')).deleted, (await client.delete().key('foo')).deleted);
  await client.kv.compact({ revision: then, physical: true });
  await refused('compacted', () => all().revision(String(BigInt(then) - 1n)).exec());
  await refused('compact again', () => client.kv.compact({ revision: then }));
}

async function transactions(client) {
  await client.put('balance').value('1');
  for (const expected of ['1', '1', '2']) {
    txn(
      `if ${expected}`,
      await client
        .if('balance', 'Value', '==', expected)
        .then(client.put('balance').value('2'), client.get('balance'))
        .else(client.get('balance'), client.delete().prefix('none'))
        .commit(),
    );
  }
  txn('create', await client.if('fresh', 'Create', '==', 0).then(client.put('fresh').value('1')).commit());
  txn('create', await client.if('fresh', 'Create', '==', 0).then(client.put('fresh').value('1')).commit());
  const { mod_revision } = (await client.get('fresh').exec()).kvs[0];
  txn(
    'much at once',
    await client
      .if('fresh', 'Mod', '==', mod_revision)
      .and('fresh', 'Version', '>', 0)
      .and('fresh', 'Value', '!=', 'x')
      .and('fresh', 'Lease', '==', 0)
      .then(client.put('batch/a').value('a'), client.put('batch/b').value('b'), client.delete().key('fresh'),
            client.getAll().prefix('batch/'))
      .commit(),
  );
  // Nothing compared, many puts: a batch.
  const puts = Array.from({ length: 128 }, (_, i) => ({
    request_put: { key: Buffer.from(`many/${String(i).padStart(3, '0')}`), value: Buffer.from('x') },
  }));
  const batch = more => client.kv.txn({ compare: [], success: [...puts, ...more], failure: [] });
  const done = await batch([]);
  say('batch', header(done.header), done.responses.length, await client.getAll().prefix('many/').count());
  await refused('too many', () => batch([puts[0]]));
  await refused('twice', () => client.kv.txn({ compare: [], success: [puts[0], puts[0]], failure: [] }));
  const moved = await client
    .stm({ retries: 5 })
    .transact(async tx => {
      const balance = await tx.get('balance').number();
      await tx.put('balance').value(balance + 40);
      return balance;
    });
  say('stm', moved, await client.get('balance').number());
  await client.put('counted').value(0);
  const add = () =>
    client.stm({ retries: 50 }).transact(async tx => tx.put('counted').value((await tx.get('counted').number()) + 1));
  await Promise.all([add(), add(), add(), add()]);
  say('stm, four at once', await client.get('counted').number());
}

// The next `count` events of a watcher.
function events(watcher, count) {
  return new Promise((resolve, reject) => {
    const told = [];
    watcher.on('data', r => {
      for (const e of r.events) told.push(`${e.type} ${kv(e.kv)} before ${kv(e.prev_kv)}`);
      if (told.length >= count) resolve(told.slice(0, count));
    });
    watcher.on('error', reject);
  });
}

async function watches(client) {
  const start = (await client.put('w/a').value('1')).header.revision;
  await client.put('w/a').value('2');
  await client.delete().key('w/a');
  await client.if('w/b', 'Create', '==', 0).then(client.put('w/b').value('3'), client.put('w/c').value('4')).commit();
  for (const [what, build, count] of [
    ['history', b => b.prefix('w/'), 5],
    ['with the past', b => b.prefix('w/').withPreviousKV(), 5],
    ['a key', b => b.key('w/a'), 3],
    ['puts', b => b.prefix('w/').only('put'), 4],
    ['deletions', b => b.prefix('w/').ignore('put'), 4], // 1.1.2 asks for the puts
    ['a range', b => b.inRange({ start: 'w/b', end: 'w/d' }), 2],
  ]) {
    const watcher = build(client.watch()).startRevision(start).watcher();
    say(what, await events(watcher, count));
    await watcher.cancel();
  }
  const live = await client.watch().prefix('w/').withPreviousKV().create();
  const other = await client.watch().key('w/other').create();
  const seen = events(live, 4);
  const seenOfOther = events(other, 1);
  await client.put('w/live').value('1');
  await client.put('w/other').value('2');
  await client.put('elsewhere').value('x');
  await client.delete().inRange({ start: 'w/l', end: 'w/m' });
  await client.put('w/last').value('3');
  say('live', await seen);
  say('another on the same stream', await seenOfOther);
  await other.cancel();
  const more = events(live, 1);
  await client.put('w/other').value('once more');
  say('one cancelled, one not', await more);
  await live.cancel();
  const now = (await client.put('w/old').value('1')).header.revision;
  const last = (await client.put('w/old').value('2')).header.revision;
  await client.kv.compact({ revision: last });
  const late = client.watch().key('w/old').startRevision(now).watcher();
  say('compacted', await new Promise(resolve => late.on('error', e => resolve(`${e.constructor.name} ${e.message}`))));
}

async function leases(client) {
  const lease = client.lease(60);
  say('put', header((await lease.put('leased/1').value('x')).header));
  await client.put('leased/2').value('y').lease(lease.grant());
  say(page(await client.getAll().prefix('leased/').exec()));
  say('kept alive', (await lease.keepaliveOnce()).TTL);
  const id = await lease.grant();
  const left = await client.leaseClient.leaseTimeToLive({ ID: id, keys: true });
  say('left', left.TTL > 0 && left.TTL <= 60, left.grantedTTL, left.keys.map(String).sort());
  const all = await client.leaseClient.leaseLeases({});
  say('leases', all.leases.map(one => one.ID === id));
  await lease.revoke();
  say(lease.revoked(), await client.getAll().prefix('leased/').keys());
  await refused('revoke again', () => client.leaseClient.leaseRevoke({ ID: id }));
  await refused('no such lease', () => client.put('leased/3').value('z').lease(id));
  const gone = client.lease(60);
  await client.leaseClient.leaseRevoke({ ID: await gone.grant() });
  const lost = new Promise(resolve => gone.on('lost', error => resolve(error.constructor.name)));
  await refused('keep alive what is gone', () => gone.keepaliveOnce());
  say('lost', await lost);

  // Kept alive for longer than it would live; then not any more.
  const short = client.lease(5);
  await short.put('short').value('here');
  const watcher = await client.watch().key('short').create();
  const deleted = new Promise(resolve => watcher.on('delete', one => resolve(one.key.toString())));
  let kept = 0;
  short.on('keepaliveSucceeded', () => kept++);
  await pause(6500);
  say('kept alive', kept >= 2, await client.get('short').string());
  short.release();
  say('expired', await deleted, await client.get('short').exists());
  await watcher.cancel();
}

async function locks(client, other) {
  const lock = client.lock('mutex').ttl(60);
  await lock.acquire();
  try {
    await other.lock('mutex').acquire();
    throw new Error('two hold it');
  } catch (error) {
    if (!(error instanceof EtcdLockFailedError)) throw error;
    say('held', error.message);
  }
  await lock.release();
  say('free', await other.lock('mutex').do(async () => (await client.getAll().prefix('mutex').keys()).length));
  say('left', await client.getAll().prefix('mutex').count());
}

async function elections(client, other) {
  const [here, there] = [client.election('office', 60), other.election('office', 60)];
  say('nobody', (await here.leader()) ?? null);
  const first = here.campaign('first');
  await first.wait();
  say('leader', await there.leader());
  const observer = await there.observe();
  const changes = [];
  observer.on('change', value => changes.push(value ?? null));
  // `told`: until the observer has been told it. It looks again where a leader has resigned.
  const told = async value => {
    while (observer.leader() !== value) await pause(5);
    return value;
  };
  say('observed', await told('first'));
  await first.proclaim('first, still');
  say('observed', await told('first, still'));
  const second = there.campaign('second');
  const elected = second.wait();
  while ((await client.getAll().prefix('election/office/').count()) < 2) await pause(5);
  await first.resign();
  await elected;
  say('observed', await told('second'), changes.filter(one => one !== null));
  say('leader', await here.leader());
  await second.resign();
  await observer.cancel();
  say('left', await client.getAll().prefix('election/').count());
}

async function cluster(client) {
  const members = (await client.cluster.memberList({})).members;
  say(members.map(one => [one.name, one.peerURLs.length, one.clientURLs.length]).sort());
  const status = await client.maintenance.status({});
  say(status.leader !== '0', status.dbSize > 0, status.raftIndex > 0, status.raftTerm > 0);
  say(header((await client.maintenance.defragment({})).header));
  say((await client.maintenance.alarm({ action: 'Get' })).alarms);
  say((await client.getUsers()).length, (await client.getRoles()).length);
  await refused('enable', () => client.auth.authEnable({}));
  const space = client.namespace('space/');
  await space.put('a').value('1');
  say('namespace', await space.getAll().strings(), await client.getAll().prefix('space/').strings());
  const watched = space.watch().key('a').startRevision((await space.get('a').exec()).kvs[0].mod_revision).watcher();
  say('namespace, watched', await events(watched, 1));
  await watched.cancel();
  await client.delete().all();
  say('all deleted', await client.getAll().count());
}

async function main() {
  // What one member alone has answered it has applied, so that it tells of nothing older after it.
  const [client, other] = [new Etcd3({ hosts: endpoints[0] }), new Etcd3({ hosts: endpoints[0] })];
  for (const part of [keys, transactions, watches, leases, locks, elections, cluster]) {
    say('----', part.name);
    await part(client, other);
  }
  client.close();
  other.close();
}

setTimeout(() => {
  console.error('not done in time');
  process.exit(1);
}, PATIENCE_MS).unref();
main().catch(error => {
  console.error(error);
  process.exit(1);
});
