// The preface with which two peers show each other that they know the same key, without sending it.
//
//   peer    TVMMNA01, 32 bytes nonce_c
//   server  TVMMNA01, 32 bytes nonce_s, HMAC(key, "server" nonce_c nonce_s)
//   peer    HMAC(key, "client" nonce_c nonce_s)
//   server  one byte 0
#ifndef BOARD_AGENT_AUTH_H_
#define BOARD_AGENT_AUTH_H_

#include <stdbool.h>

#include "sha256.h"

enum { MAGIC_SIZE = 8, NONCE_SIZE = 32, AUTH_KEY_MIN = 16, AUTH_KEY_MAX = 4096 };

#define AUTH_MAGIC "TVMMNA01"
#define STATUS_MAGIC "TVMMNQ01"

typedef struct {
  char data[AUTH_KEY_MAX];
  size_t size;  // 0: no key is asked for
} AuthKey;

// Reads a key file, white space around it removed. On failure writes one line into `reason`.
bool auth_read_key(const char* path, AuthKey* key, char* reason, size_t capacity);

// Computes what the server or the client (`role`) proves its knowledge of the key with.
void auth_proof(const AuthKey* key, const char* role, const uint8_t nonce_c[NONCE_SIZE],
                const uint8_t nonce_s[NONCE_SIZE], uint8_t proof[SHA256_SIZE]);

#endif  // BOARD_AGENT_AUTH_H_
