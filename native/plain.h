/* The usual requests, taken apart a whole batch at a time.
 *
 *   batch  | record | record | record | ...        ->   out  | tag, id, ... | tag, id, ... | ...      64 bits each
 *
 * Most writes are a put of a key and a value, or a transaction of a few comparisons, puts, gets and deletes of single
 * keys. For these, and only for these, plain_scan() says where in the batch their parts lie, so that nobody has to parse
 * them as protobuf messages, one by one, at the member that takes them in and again at every member that applies them.
 *
 * What it calls plain is exactly what protobuf and the rules of etcd's API would make of those bytes; whatever is
 * unusual (a field that is not listed below or is there twice, an empty key, a request that breaks a rule, a number
 * over 63 bits) is PLAIN_OTHER and says nothing: the caller does it the long way. So there is no error here that a
 * client could see. What is plain depends on the bytes and the two limits alone, and every member must get the same
 * result from either way.
 *
 *   PutRequest        key, value
 *   TxnRequest        comparisons and operations, at most PLAIN_LIST_MAX and `ops_max` in each list; at least one of the
 *                     operations writes
 *   Compare           result, target (VERSION, CREATE, MOD, VALUE), key, and the union's field of that target or none
 *   RangeRequest      key, serializable (which means nothing inside)
 *   DeleteRangeRequest key
 *
 * Within a branch no key is put twice, or put and deleted (etcd's duplicate rule).
 *
 * out, per record; positions are offsets in the batch, a part is [at, end):
 *
 *   PLAIN_OTHER  id  method | kind << 8 | status << 16   payload at, end
 *   PLAIN_PUT    id  key at, end   value at, end
 *   PLAIN_TXN    id  next   n  n x compare   success: n  failure: n   n x op ... n x op ...
 *                    next: where in `out` the next record begins
 *       compare  target  result  key at, end   number, 0  or  value at, end
 *       op       PLAIN_GET / PLAIN_PUT / PLAIN_DELETE   key at, end   value at, end (0, 0 but for a put) */
#ifndef KVORUM_PLAIN_H
#define KVORUM_PLAIN_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */

enum plain {
    PLAIN_OTHER = 0,
    PLAIN_GET = 1,
    PLAIN_PUT = 2,
    PLAIN_DELETE = 3,
    PLAIN_TXN = 4,
    PLAIN_LIST_MAX = 128
};

/* Take the `size` bytes of a batch apart. Requests over `payload_max` bytes, and transactions with more than `ops_max`
 * comparisons or operations in a list, are PLAIN_OTHER.
 *
 * Returns how many numbers were written, and in `others` how many records are PLAIN_OTHER; -1 if the batch is not a
 * sequence of whole records; -2 if `room` numbers are too few, which 2 * size + 16 never are. */
int64_t plain_scan(const uint8_t *batch, size_t size, uint64_t payload_max, uint32_t ops_max, uint64_t *out, size_t room,
                   uint64_t *others);

/* cdef: end */

#endif
