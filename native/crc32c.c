#include "crc32c.h"

#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "little-endian only: the log's numbers are little-endian, and are copied as they lie in memory"
#endif

/* table[0] is the classic byte-wise table of the reflected polynomial; table[k][b] is what byte b does to the register
 * when k more zero bytes follow it. Eight look-ups then do the work of eight dependent steps. */
static uint32_t table[8][256];

typedef uint32_t (*step_fn)(uint32_t reg, const uint8_t *at, size_t size);

static uint32_t step_table(uint32_t reg, const uint8_t *at, size_t size) {
    while (size >= 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        word ^= reg;
        reg = table[7][word & 255] ^ table[6][word >> 8 & 255] ^ table[5][word >> 16 & 255] ^
              table[4][word >> 24 & 255] ^ table[3][word >> 32 & 255] ^ table[2][word >> 40 & 255] ^
              table[1][word >> 48 & 255] ^ table[0][word >> 56];
        at += 8;
        size -= 8;
    }
    while (size--) reg = table[0][(reg ^ *at++) & 255] ^ reg >> 8;
    return reg;
}

#if defined(__x86_64__)
#include <nmmintrin.h>

#define WAY "sse4.2"

__attribute__((target("sse4.2"))) static uint32_t step_hardware(uint32_t reg, const uint8_t *at, size_t size) {
    uint64_t wide = reg;
    for (; size >= 8; at += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        wide = _mm_crc32_u64(wide, word);
    }
    reg = (uint32_t)wide;
    while (size--) reg = _mm_crc32_u8(reg, *at++);
    return reg;
}

static int has_hardware(void) { return __builtin_cpu_supports("sse4.2"); }

#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

#define WAY "armv8"
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif

/* The instructions by name, so that it makes no difference which intrinsics a compiler has, or for which target. */
static uint32_t step_hardware(uint32_t reg, const uint8_t *at, size_t size) {
    for (; size >= 8; at += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        __asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(reg) : "r"(word));
    }
    for (; size; at++, size--) __asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(reg) : "r"((uint32_t)*at));
    return reg;
}

static int has_hardware(void) { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }

#else

#define WAY "table"
#define step_hardware step_table

static int has_hardware(void) { return 0; }

#endif

static step_fn step = step_table;
static const char *way = "table";

/* Runs when the library is loaded, before any thread of ours, so that nothing here needs a lock. */
__attribute__((constructor)) static void prepare(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t reg = byte;
        for (int bit = 0; bit < 8; bit++) reg = reg >> 1 ^ (reg & 1 ? 0x82F63B78u : 0);
        table[0][byte] = reg;
    }
    for (int k = 1; k < 8; k++)
        for (int byte = 0; byte < 256; byte++)
            table[k][byte] = table[0][table[k - 1][byte] & 255] ^ table[k - 1][byte] >> 8;
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    if (has_hardware()) {
        step = step_hardware;
        way = WAY;
    }
}

uint32_t crc32c(uint32_t crc, const void *data, size_t size) { return ~step(~crc, data, size); }

uint32_t crc32c_table(uint32_t crc, const void *data, size_t size) { return ~step_table(~crc, data, size); }

const char *crc32c_way(void) { return way; }
