#define _GNU_SOURCE
#include "sha256.h"

#include <string.h>

enum { BLOCK = 64, MAX_SPANS = 7 };

// FIPS 180-4, section 4.2.2: the fractional parts of the cube roots of the first 64 primes.
static const uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

typedef struct {
  uint32_t state[8];
  uint8_t block[BLOCK];
  size_t filled;
  uint64_t total;
} Hash;

static uint32_t rotate(uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

static void compress(Hash* hash) {
  uint32_t w[64];
  for (int i = 0; i < 16; ++i) {
    const uint8_t* b = hash->block + 4 * i;
    w[i] = (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
  }
  for (int i = 16; i < 64; ++i) {
    uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ (w[i - 15] >> 3);
    uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ (w[i - 2] >> 10);
    w[i] = w[i - 16] + s0 + w[i - 7] + s1;
  }
  uint32_t v[8];
  memcpy(v, hash->state, sizeof v);
  for (int i = 0; i < 64; ++i) {
    uint32_t s1 = rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25);
    uint32_t choice = (v[4] & v[5]) ^ (~v[4] & v[6]);
    uint32_t t1 = v[7] + s1 + choice + kRound[i] + w[i];
    uint32_t s0 = rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22);
    uint32_t majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
    memmove(v + 1, v, 7 * sizeof *v);
    v[4] += t1;
    v[0] = t1 + s0 + majority;
  }
  for (int i = 0; i < 8; ++i) hash->state[i] += v[i];
}

static void feed(Hash* hash, const void* data, size_t size) {
  const uint8_t* bytes = data;
  hash->total += size;
  while (size) {
    size_t part = BLOCK - hash->filled < size ? BLOCK - hash->filled : size;
    memcpy(hash->block + hash->filled, bytes, part);
    hash->filled += part;
    bytes += part;
    size -= part;
    if (hash->filled == BLOCK) {
      compress(hash);
      hash->filled = 0;
    }
  }
}

void sha256(const Span* spans, size_t count, uint8_t digest[SHA256_SIZE]) {
  // Section 5.3.3: the fractional parts of the square roots of the first 8 primes.
  Hash hash = {.state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c,
                         0x1f83d9ab, 0x5be0cd19}};
  for (size_t i = 0; i < count; ++i) feed(&hash, spans[i].data, spans[i].size);
  uint64_t bits = hash.total * 8;
  static const uint8_t padding[BLOCK] = {0x80};
  size_t zeros = (hash.filled < 56 ? 56 : 120) - hash.filled;
  feed(&hash, padding, zeros);
  uint8_t length[8];
  for (int i = 0; i < 8; ++i) length[i] = (uint8_t)(bits >> (56 - 8 * i));
  feed(&hash, length, sizeof length);
  for (int i = 0; i < SHA256_SIZE; ++i) {
    digest[i] = (uint8_t)(hash.state[i / 4] >> (24 - 8 * (i % 4)));
  }
}

void hmac_sha256(Span key, const Span* spans, size_t count, uint8_t mac[SHA256_SIZE]) {
  uint8_t short_key[BLOCK] = {0};
  if (key.size > BLOCK) {
    sha256(&key, 1, short_key);
  } else {
    memcpy(short_key, key.data, key.size);
  }
  uint8_t inner[BLOCK];
  uint8_t outer[BLOCK];
  for (int i = 0; i < BLOCK; ++i) {
    inner[i] = short_key[i] ^ 0x36;
    outer[i] = short_key[i] ^ 0x5c;
  }
  Span all[MAX_SPANS + 1] = {{inner, BLOCK}};
  if (count > MAX_SPANS) count = MAX_SPANS;
  memcpy(all + 1, spans, count * sizeof *spans);
  uint8_t digest[SHA256_SIZE];
  sha256(all, count + 1, digest);
  sha256((Span[]){{outer, BLOCK}, {digest, SHA256_SIZE}}, 2, mac);
}

int equal_in_constant_time(const uint8_t* a, const uint8_t* b, size_t size) {
  volatile uint8_t difference = 0;
  for (size_t i = 0; i < size; ++i) difference |= (uint8_t)(a[i] ^ b[i]);
  return difference == 0;
}
