/* CRC-32C (Castagnoli): the checksum of the write-ahead log.
 *
 * The processor's own instruction where there is one (SSE4.2, ARMv8), found out once when the library is loaded; a
 * table (eight bytes a step) everywhere else. All ways give the same number, and the tests hold them to it. */
#ifndef KVORUM_CRC32C_H
#define KVORUM_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */

/* The checksum of what `crc` is the checksum of, followed by `size` bytes at `data`. Begin with 0.
 * For inputs of equal length it is injective in `crc`: different beginnings never meet again. */
uint32_t crc32c(uint32_t crc, const void *data, size_t size);

/* The same by table alone. For tests, and for processors without the instruction. */
uint32_t crc32c_table(uint32_t crc, const void *data, size_t size);

/* Which way crc32c() goes on this machine: "sse4.2", "armv8" or "table". */
const char *crc32c_way(void);

/* cdef: end */

#endif
