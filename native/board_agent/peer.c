#define _GNU_SOURCE
#include "peer.h"

#include <ctype.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "packet.h"

void peer_open(Peer* peer, int fd, unsigned long order, double deadline) {
  *peer = (Peer){.state = PEER_FIRST, .fd = fd, .order = order, .deadline = deadline, .need = 4};
}

void peer_close(Peer* peer, bool keep) {
  if (!keep) close(peer->fd);
  text_free(&peer->out);
  *peer = (Peer){.state = PEER_NONE, .fd = -1};
}

short peer_interest(const Peer* peer) {
  if (peer->state == PEER_QUEUED) return POLLRDHUP;
  return peer->state == PEER_ANSWER ? POLLOUT : POLLIN;
}

static void expect(Peer* peer, PeerState state, size_t need) {
  peer->state = state;
  peer->have = 0;
  peer->need = need;
}

// Sends a few bytes that a fresh connection always has room for.
static bool send_now(const Peer* peer, const void* data, size_t size) {
  return send(peer->fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)size;
}

// Copies a word, keeping only what can be shown.
static void take_word(const char* from, char* to, size_t capacity) {
  size_t size = 0;
  for (; *from && size + 1 < capacity; ++from) {
    if (isgraph((unsigned char)*from)) to[size++] = *from;
  }
  to[size] = '\0';
}

// Reads `client:KEY -timeout=S -session=ID -user=WHO`; what is not known is skipped.
static bool parse_request(char* text, Request* request) {
  static const char kClient[] = "client:";
  char* state = NULL;
  char* word = strtok_r(text, " \t\r\n", &state);
  *request = (Request){0};
  if (word == NULL || strncmp(word, kClient, strlen(kClient)) != 0) return false;
  if (strlen(word) - strlen(kClient) >= sizeof request->key) return false;
  take_word(word + strlen(kClient), request->key, sizeof request->key);
  while ((word = strtok_r(NULL, " \t\r\n", &state)) != NULL) {
    double seconds;
    if (strncmp(word, "-timeout=", 9) == 0 && parse_number(word + 9, 0, 1e9, &seconds)) {
      request->timeout_s = seconds;
    } else if (strncmp(word, "-session=", 9) == 0) {
      take_word(word + 9, request->id, sizeof request->id);
    } else if (strncmp(word, "-user=", 6) == 0) {
      take_word(word + 6, request->user, sizeof request->user);
    }
  }
  return true;
}

static PeerEvent first_bytes(Peer* peer, const AuthKey* key) {
  bool must_authenticate = key->size && !peer->authenticated;
  bool has_name = peer->have >= MAGIC_SIZE;
  // The names of preface and query have their first half in common: four bytes tell them from RPC.
  if (!has_name && memcmp(peer->in, AUTH_MAGIC, 4) == 0) {
    peer->need = MAGIC_SIZE;
    return PEER_GOES_ON;
  }
  if (has_name && must_authenticate && memcmp(peer->in, AUTH_MAGIC, MAGIC_SIZE) == 0) {
    expect(peer, PEER_NONCE, NONCE_SIZE);
    return PEER_GOES_ON;
  }
  if (must_authenticate) return PEER_GONE;
  if (has_name) {
    return memcmp(peer->in, STATUS_MAGIC, MAGIC_SIZE) == 0 ? PEER_WANTS_STATUS : PEER_GONE;
  }
  if (get_u32(peer->in) != RPC_MAGIC) return PEER_GONE;
  expect(peer, PEER_LENGTH, 4);
  return PEER_GOES_ON;
}

static PeerEvent answer_nonce(Peer* peer, const AuthKey* key) {
  uint8_t answer[MAGIC_SIZE + NONCE_SIZE + SHA256_SIZE];
  memcpy(peer->nonce_c, peer->in, NONCE_SIZE);
  if (!random_bytes(peer->nonce_s, NONCE_SIZE)) return PEER_GONE;
  memcpy(answer, AUTH_MAGIC, MAGIC_SIZE);
  memcpy(answer + MAGIC_SIZE, peer->nonce_s, NONCE_SIZE);
  auth_proof(key, "server", peer->nonce_c, peer->nonce_s, answer + MAGIC_SIZE + NONCE_SIZE);
  if (!send_now(peer, answer, sizeof answer)) return PEER_GONE;
  expect(peer, PEER_PROOF, SHA256_SIZE);
  return PEER_GOES_ON;
}

static PeerEvent check_proof(Peer* peer, const AuthKey* key) {
  uint8_t proof[SHA256_SIZE];
  auth_proof(key, "client", peer->nonce_c, peer->nonce_s, proof);
  if (!equal_in_constant_time(proof, peer->in, SHA256_SIZE)) return PEER_GONE;
  if (!send_now(peer, "", 1)) return PEER_GONE;
  peer->authenticated = true;
  expect(peer, PEER_FIRST, 4);
  return PEER_GOES_ON;
}

// Acts on a part that has arrived in full.
static PeerEvent part_is_there(Peer* peer, const AuthKey* key) {
  uint32_t length;
  switch (peer->state) {
    case PEER_FIRST:
      return first_bytes(peer, key);
    case PEER_NONCE:
      return answer_nonce(peer, key);
    case PEER_PROOF:
      return check_proof(peer, key);
    case PEER_LENGTH:
      length = get_u32(peer->in);
      if (length == 0 || length >= REQUEST_KEY_MAX) return PEER_GONE;
      expect(peer, PEER_KEY, length);
      return PEER_GOES_ON;
    case PEER_KEY:
      peer->in[peer->have] = '\0';
      return parse_request((char*)peer->in, &peer->request) ? PEER_WANTS_SESSION : PEER_GONE;
    default:
      return PEER_GONE;
  }
}

static PeerEvent receive(Peer* peer, const AuthKey* key) {
  while (true) {
    // No byte more than the part that is expected: what follows may be the session's.
    ssize_t got = recv(peer->fd, peer->in + peer->have, peer->need - peer->have, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return PEER_GOES_ON;
    if (got <= 0) return PEER_GONE;
    peer->have += (size_t)got;
    if (peer->have < peer->need) continue;
    PeerEvent event = part_is_there(peer, key);
    if (event != PEER_GOES_ON) return event;
  }
}

static PeerEvent drain(const Peer* peer) {
  char block[65536];
  for (int i = 0; i < 16; ++i) {
    ssize_t got = recv(peer->fd, block, sizeof block, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return PEER_GOES_ON;
    if (got <= 0) return PEER_GONE;
  }
  return PEER_GOES_ON;
}

static PeerEvent send_answer(Peer* peer) {
  while (peer->sent < peer->out.size) {
    ssize_t sent = send(peer->fd, peer->out.data + peer->sent, peer->out.size - peer->sent,
                        MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return errno == EAGAIN ? PEER_GOES_ON : PEER_GONE;
    peer->sent += (size_t)sent;
  }
  return PEER_GONE;
}

PeerEvent peer_step(Peer* peer, const AuthKey* key, short events) {
  if (!events) return PEER_GOES_ON;
  if (peer->state == PEER_QUEUED) return PEER_GONE;  // nothing but the end was polled for
  if (peer->state == PEER_DRAIN) return drain(peer);
  if (peer->state == PEER_ANSWER) return send_answer(peer);
  return receive(peer, key);
}
