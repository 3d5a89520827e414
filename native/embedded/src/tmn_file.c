/* Reading files whole, hashing them, and looking at a library without loading it. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tmn_internal.h"

/* SHA-256 as in FIPS 180-4, section 6.2. */

typedef struct sha256 {
    uint32_t state[8];
    uint64_t bytes;
    uint8_t block[64];
} sha256;

/* FIPS 180-4, section 4.2.2. */
static const uint32_t SHA256_K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

/* FIPS 180-4, section 5.3.3. */
static const uint32_t SHA256_START[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

static uint32_t rotate_right(uint32_t value, unsigned count) {
    return (value >> count) | (value << (32 - count));
}

static void sha256_block(uint32_t state[8], const uint8_t *block) {
    uint32_t w[64];
    for (size_t t = 0; t < 16; t++) {
        const uint8_t *p = block + 4 * t;
        w[t] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    }
    for (size_t t = 16; t < 64; t++) {
        uint32_t s0 = rotate_right(w[t - 15], 7) ^ rotate_right(w[t - 15], 18) ^ (w[t - 15] >> 3);
        uint32_t s1 = rotate_right(w[t - 2], 17) ^ rotate_right(w[t - 2], 19) ^ (w[t - 2] >> 10);
        w[t] = w[t - 16] + s0 + w[t - 7] + s1;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (size_t t = 0; t < 64; t++) {
        uint32_t big1 = rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25);
        uint32_t t1 = h + big1 + ((e & f) ^ (~e & g)) + SHA256_K[t] + w[t];
        uint32_t big0 = rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22);
        uint32_t t2 = big0 + ((a & b) ^ (a & c) ^ (b & c));
        h = g;
        g = f;
        f = e;
        e = d + t1;
        d = c;
        c = b;
        b = a;
        a = t1 + t2;
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
    state[4] += e;
    state[5] += f;
    state[6] += g;
    state[7] += h;
}

static void sha256_start(sha256 *hash) {
    memcpy(hash->state, SHA256_START, sizeof hash->state);
    hash->bytes = 0;
}

static void sha256_add(sha256 *hash, const uint8_t *data, size_t size) {
    size_t filled = (size_t)(hash->bytes % 64);
    hash->bytes += size;
    if (filled > 0) {
        size_t part = size < 64 - filled ? size : 64 - filled;
        memcpy(hash->block + filled, data, part);
        data += part;
        size -= part;
        if (filled + part < 64) {
            return;
        }
        sha256_block(hash->state, hash->block);
    }
    for (; size >= 64; data += 64, size -= 64) {
        sha256_block(hash->state, data);
    }
    if (size > 0) {
        memcpy(hash->block, data, size);
    }
}

static void sha256_finish(sha256 *hash, char hex[TMN_SHA256_HEX]) {
    static const uint8_t padding[64] = {0x80};
    uint64_t bits = hash->bytes * 8;
    uint8_t length[8];
    for (size_t i = 0; i < 8; i++) {
        length[i] = (uint8_t)(bits >> (56 - 8 * i));
    }
    size_t filled = (size_t)(hash->bytes % 64);
    sha256_add(hash, padding, filled < 56 ? 56 - filled : 120 - filled);
    sha256_add(hash, length, sizeof length);
    for (size_t i = 0; i < 8; i++) {
        snprintf(hex + 8 * i, 9, "%08" PRIx32, hash->state[i]);
    }
}

void tmn_sha256_hex(const void *data, size_t size, char hex[TMN_SHA256_HEX]) {
    sha256 hash;
    sha256_start(&hash);
    sha256_add(&hash, data, size);
    sha256_finish(&hash, hex);
}

static tmn_status cannot_read(const char *path, tmn_error *error) {
    return tmn_fail(error, TMN_ERROR_FILE, "%s: cannot be read: %s", path,
                    errno ? strerror(errno) : "input error");
}

tmn_status tmn_read_file(const char *path, size_t limit, char **data, size_t *size,
                         tmn_error *error) {
    errno = 0;
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        return cannot_read(path, error);
    }
    size_t capacity = 4096;
    size_t used = 0;
    char *buffer = malloc(capacity);
    tmn_status status = buffer != NULL ? TMN_OK : tmn_fail_memory(error);
    while (status == TMN_OK) {
        used += fread(buffer + used, 1, capacity - 1 - used, file);
        if (ferror(file)) {
            status = cannot_read(path, error);
        } else if (used > limit) {
            status = tmn_fail(error, TMN_ERROR_DAMAGED, "%s: larger than %zu bytes", path, limit);
        } else if (feof(file)) {
            break;
        } else if (used == capacity - 1) {
            capacity *= 2;
            char *larger = realloc(buffer, capacity);
            if (larger == NULL) {
                status = tmn_fail_memory(error);
            } else {
                buffer = larger;
            }
        }
    }
    fclose(file);
    if (status != TMN_OK) {
        free(buffer);
        return status;
    }
    buffer[used] = '\0';
    *data = buffer;
    *size = used;
    return TMN_OK;
}

/* The ELF header's machine, from the System V gABI registry of machine names. */
static const struct {
    unsigned number;
    const char *name;
} MACHINES[] = {{3, "i386"}, {40, "arm"}, {62, "x86-64"}, {183, "aarch64"}, {243, "riscv"}};

#if defined(__x86_64__) && !defined(__ILP32__)
#define THIS_MACHINE 62u
#elif defined(__aarch64__)
#define THIS_MACHINE 183u
#elif defined(__arm__)
#define THIS_MACHINE 40u
#elif defined(__i386__)
#define THIS_MACHINE 3u
#elif defined(__riscv)
#define THIS_MACHINE 243u
#else
#error "add this machine's ELF number to MACHINES and THIS_MACHINE"
#endif

static const char *machine_name(unsigned number) {
    for (size_t i = 0; i < sizeof MACHINES / sizeof MACHINES[0]; i++) {
        if (MACHINES[i].number == number) {
            return MACHINES[i].name;
        }
    }
    return "an unknown machine";
}

static tmn_status check_header(const char *path, const uint8_t *header, size_t size,
                               tmn_error *error) {
    if (size < 20 || memcmp(header, "\x7f" "ELF", 4) != 0) {
        return tmn_fail(error, TMN_ERROR_DAMAGED,
                        "%s: not an ELF shared library; copy the model's folder again", path);
    }
    bool is_little = header[5] == 1;
    unsigned machine = is_little ? header[18] | (unsigned)header[19] << 8
                                 : header[19] | (unsigned)header[18] << 8;
    if (machine != THIS_MACHINE || !is_little) {
        return tmn_fail(error, TMN_ERROR_MACHINE,
                        "%s: the library is for %s, this program is for %s; bundle the model for "
                        "this machine's target",
                        path, machine_name(machine), machine_name(THIS_MACHINE));
    }
    return TMN_OK;
}

static tmn_status check_size(const char *path, uint64_t found, uint64_t size, tmn_error *error) {
    if (found == size) {
        return TMN_OK;
    }
    return tmn_fail(error, TMN_ERROR_DAMAGED,
                    "%s is %s: %" PRIu64 " bytes, its description says %" PRIu64
                    "; copy the model's folder again",
                    path, found < size ? "truncated" : "altered", found, size);
}

static tmn_status hash_file(FILE *file, const char *path, char hex[TMN_SHA256_HEX],
                            tmn_error *error) {
    static const size_t CHUNK = 1u << 16;
    uint8_t *chunk = malloc(CHUNK);
    if (chunk == NULL) {
        return tmn_fail_memory(error);
    }
    sha256 hash;
    sha256_start(&hash);
    size_t count;
    while ((count = fread(chunk, 1, CHUNK, file)) > 0) {
        sha256_add(&hash, chunk, count);
    }
    free(chunk);
    if (ferror(file)) {
        return cannot_read(path, error);
    }
    sha256_finish(&hash, hex);
    return TMN_OK;
}

static tmn_status check_open_library(FILE *file, const char *path, uint64_t size,
                                     const char *expected, tmn_error *error) {
    uint8_t header[20];
    size_t count = fread(header, 1, sizeof header, file);
    if (ferror(file)) {
        return cannot_read(path, error);
    }
    tmn_status status = check_header(path, header, count, error);
    if (status != TMN_OK) {
        return status;
    }
    long end = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
    if (end < 0 || fseek(file, 0, SEEK_SET) != 0) {
        return cannot_read(path, error);
    }
    status = check_size(path, (uint64_t)end, size, error);
    if (status != TMN_OK || expected == NULL) {
        return status;
    }
    char found[TMN_SHA256_HEX];
    status = hash_file(file, path, found, error);
    if (status == TMN_OK && strcmp(found, expected) != 0) {
        status = tmn_fail(error, TMN_ERROR_DAMAGED,
                          "%s is altered: sha256 %.12s..., its description says %.12s...; copy the "
                          "model's folder again",
                          path, found, expected);
    }
    return status;
}

tmn_status tmn_check_library(const char *path, uint64_t size, const char *expected,
                             tmn_error *error) {
    errno = 0;
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        return cannot_read(path, error);
    }
    tmn_status status = check_open_library(file, path, size, expected, error);
    fclose(file);
    return status;
}
