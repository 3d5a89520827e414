// SHA-256 (FIPS 180-4) and HMAC-SHA-256 (RFC 2104).
#ifndef BOARD_AGENT_SHA256_H_
#define BOARD_AGENT_SHA256_H_

#include <stddef.h>
#include <stdint.h>

enum { SHA256_SIZE = 32 };

typedef struct {
  const void* data;
  size_t size;
} Span;

// Hashes the spans one after another.
void sha256(const Span* spans, size_t count, uint8_t digest[SHA256_SIZE]);

// Authenticates the spans one after another with `key`; at most 7 spans.
void hmac_sha256(Span key, const Span* spans, size_t count, uint8_t mac[SHA256_SIZE]);

// Compares in a time that does not depend on where two values differ.
int equal_in_constant_time(const uint8_t* a, const uint8_t* b, size_t size);

#endif  // BOARD_AGENT_SHA256_H_
