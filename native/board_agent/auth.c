#define _GNU_SOURCE
#include "auth.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool auth_read_key(const char* path, AuthKey* key, char* reason, size_t capacity) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    snprintf(reason, capacity, "key file %s: cannot be read: %s", path, strerror(errno));
    return false;
  }
  struct stat status;
  ssize_t got = -1;
  if (fstat(fd, &status) == 0) got = read(fd, key->data, sizeof key->data);
  close(fd);
  if (got < 0) {
    snprintf(reason, capacity, "key file %s: cannot be read: %s", path, strerror(errno));
    return false;
  }
  if (status.st_mode & (S_IRWXG | S_IRWXO)) {
    snprintf(reason, capacity, "key file %s: others may read or change it; run chmod 600 %s", path,
             path);
    return false;
  }
  size_t size = (size_t)got;
  while (size && isspace((unsigned char)key->data[size - 1])) --size;
  size_t begin = 0;
  while (begin < size && isspace((unsigned char)key->data[begin])) ++begin;
  size -= begin;
  memmove(key->data, key->data + begin, size);
  if (size < AUTH_KEY_MIN || (size_t)got == sizeof key->data) {
    snprintf(reason, capacity, "key file %s: holds %zu bytes; write %d to %d random ones into it",
             path, size, AUTH_KEY_MIN, AUTH_KEY_MAX - 1);
    return false;
  }
  key->size = size;
  return true;
}

void auth_proof(const AuthKey* key, const char* role, const uint8_t nonce_c[NONCE_SIZE],
                const uint8_t nonce_s[NONCE_SIZE], uint8_t proof[SHA256_SIZE]) {
  const Span spans[] = {{role, strlen(role)}, {nonce_c, NONCE_SIZE}, {nonce_s, NONCE_SIZE}};
  hmac_sha256((Span){key->data, key->size}, spans, 3, proof);
}
